# Tables, figures and the page. Each reads result files only.


rule list_cells:
    output:
        f"{results}/cells.csv",
    log:
        f"{results}/logs/list_cells.log",
    benchmark:
        f"{results}/benchmarks/list_cells.tsv"
    conda:
        "../../environment.yml"
    params:
        values=graph.listing(),
    shell:
        "budgeted-lora stage list-cells --values {params.values:q} --out {output} 2>&1 | tee {log}"


rule make_table:
    input:
        code=source_files("report"),
        published="config/published.csv",
        files=lambda wildcards: graph.table_inputs(wildcards.table),
    output:
        report(
            f"{reports}/tables/{{table}}.csv",
            caption="../report/table.rst",
            category="Tables",
            labels={"table": "{table}"},
        ),
        f"{reports}/tables/{{table}}.md",
        f"{reports}/tables/{{table}}.tex",
    log:
        f"{results}/logs/make_table/{{table}}.log",
    benchmark:
        f"{results}/benchmarks/make_table/{{table}}.tsv"
    wildcard_constraints:
        table="|".join(graph.report_tables()),
    conda:
        "../../environment.yml"
    params:
        values=graph.uncertainty(),
        cells=lambda wildcards: graph.rows(wildcards.table),
        results=lambda wildcards: results,
        reports=lambda wildcards, output: dirname(dirname(output[0])),
    shell:
        "budgeted-lora stage table {wildcards.table} --values {params.values:q} --cells {params.cells:q}"
        " --results {params.results} --published {input.published} --out {params.reports} 2>&1 | tee {log}"


rule make_figure:
    input:
        code=source_files("report"),
        files=lambda wildcards: graph.figure_inputs(wildcards.figure),
    output:
        report(
            f"{reports}/figures/{{figure}}.svg",
            caption="../report/figure.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
        f"{reports}/figures/{{figure}}.png",
        f"{reports}/figures/{{figure}}.pdf",
    log:
        f"{results}/logs/make_figure/{{figure}}.log",
    benchmark:
        f"{results}/benchmarks/make_figure/{{figure}}.tsv"
    wildcard_constraints:
        figure="|".join(graph.figures()),
    conda:
        "../../environment.yml"
    params:
        cells=lambda wildcards: graph.rows(wildcards.figure),
        results=lambda wildcards: results,
        reports=lambda wildcards, output: dirname(dirname(output[0])),
    shell:
        "budgeted-lora stage figure {wildcards.figure} --cells {params.cells:q} --results {params.results}"
        " --out {params.reports} 2>&1 | tee {log}"


rule make_index:
    input:
        code=source_files("report"),
        template=graph.report_templates(),
        published="config/published.csv",
        tables=[f"{reports}/tables/{name}.csv" for name in graph.main_tables()],
        figures=[f"{reports}/figures/{name}.svg" for name in MAIN_FIGURES],
        claims=f"{reports}/claims.csv",
        files=[*graph.common(), *graph.references(), *graph.scores(MAIN_CELLS)],
    output:
        report(
            f"{reports}/index.html", caption="../report/index.rst", category="Report"
        ),
    log:
        f"{results}/logs/make_index.log",
    benchmark:
        f"{results}/benchmarks/make_index.tsv"
    conda:
        "../../environment.yml"
    params:
        values=graph.uncertainty(),
        config=graph.whole(),
        results=lambda wildcards: results,
        reports=lambda wildcards, output: dirname(output[0]),
    shell:
        "budgeted-lora stage index --values {params.values:q} --config {params.config:q} --results {params.results}"
        " --published {input.published} --out {params.reports} 2>&1 | tee {log}"


# A file has one rule, and the page must not wait for ablations: so it is written again once they are there.
rule make_contents:
    input:
        code=source_files("report"),
        template=graph.report_templates(),
        published="config/published.csv",
        page=ancient(f"{reports}/index.html"),
        files=lambda wildcards: graph.part_files(wildcards.part),
    output:
        f"{reports}/contents/{{part}}.json",
    log:
        f"{results}/logs/make_contents/{{part}}.log",
    benchmark:
        f"{results}/benchmarks/make_contents/{{part}}.tsv"
    wildcard_constraints:
        part="|".join(graph.page_parts()),
    conda:
        "../../environment.yml"
    params:
        values=graph.uncertainty(),
        config=graph.whole(),
        results=lambda wildcards: results,
        reports=lambda wildcards, input: dirname(input.page),
    shell:
        "budgeted-lora stage index --values {params.values:q} --config {params.config:q} --results {params.results}"
        " --published {input.published} --out {params.reports} --contents {output} 2>&1 | tee {log}"


# Targets a person types. `main` is what the paper's main section shows, with the controls it lacks.


rule main:
    input:
        f"{reports}/index.html",


rule report:
    input:
        f"{reports}/index.html",


rule ablations:
    input:
        [f"{reports}/tables/{name}.csv" for name in graph.ablations()],


rule pareto:
    input:
        [f"{reports}/figures/{name}.svg" for name in PARETO],


rule figure2:
    input:
        f"{reports}/figures/figure2.svg",


for _table in graph.report_tables():

    rule:
        name:
            _table
        input:
            f"{reports}/tables/{_table}.csv",
            # The page itself as well: Snakemake overlooks what a target lacks whose only way to a job that runs is `ancient`.
            branch(
                _table in graph.page_parts(),
                then=[f"{reports}/index.html", f"{reports}/contents/{_table}.json"],
                otherwise=[],
            ),
