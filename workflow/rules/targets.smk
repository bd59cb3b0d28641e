# Targets a person types; `all` stands in the Snakefile. `main` is what the paper's main section shows, with the controls it lacks.


rule main:
    input:
        f"{reports}/index.html",
    message:
        f"Report of scale {scale}: {reports}/index.html"


rule report:
    input:
        f"{reports}/index.html",
    message:
        f"Report of scale {scale}: {reports}/index.html"


rule ablations:
    input:
        [f"{reports}/tables/{name}.csv" for name in report_jobs.names("ablations")],
    message:
        f"Ablations of scale {scale}: {reports}/tables"


rule pareto:
    input:
        [f"{reports}/figures/{name}.svg" for name in PARETO],
    message:
        f"Pareto plots of scale {scale}: {reports}/figures"


rule figure2:
    input:
        f"{reports}/figures/figure2.svg",
    message:
        f"Figure 2 of scale {scale}: {reports}/figures/figure2.svg"


for _table in report_jobs.tables:

    rule:
        name:
            _table
        input:
            f"{reports}/tables/{_table}.csv",
            # The page itself as well: Snakemake overlooks what a target lacks whose only way to a job that runs is `ancient`.
            branch(
                _table in report_jobs.parts(),
                then=[f"{reports}/index.html", f"{reports}/contents/{_table}.json"],
                otherwise=[],
            ),
        message:
            f"Table {_table} of scale {scale}: {reports}/tables/{_table}.md"
