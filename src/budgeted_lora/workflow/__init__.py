"""What Snakemake asks: cells, values and paths of jobs, sources, locks, device slots."""
