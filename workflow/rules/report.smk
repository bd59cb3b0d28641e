# Tables, figures and the page. Each reads result files only.


rule list_cells:
    input:
        code=code.of("list_cells"),
    output:
        out=f"{results}/cells.csv",
        tables=f"{results}/tables.csv",
    log:
        f"{results}/logs/list_cells.log",
    benchmark:
        f"{results}/benchmarks/list_cells.tsv"
    conda:
        "../../environment.yml"
    params:
        digest=report_jobs.list_digest(),
        options=options.as_json(graph, report_jobs.list_options()),
    message:
        "Listing the cells"
    shell:
        stage_command("list_cells", output=["out", "tables"], params=["options"])


# One configured table each, so that an edit of its rows makes again what shows it and nothing else: Snakemake compares
# `digest`, not the configuration. Not from tables.csv: while that is written, Snakemake would not look for other reasons
# to make a table, even through `ancient`.
rule list_table:
    input:
        code=code.of("list_table"),
    output:
        out=f"{results}/tables/{{table}}.csv",
    log:
        f"{results}/logs/list_table/{{table}}.log",
    benchmark:
        f"{results}/benchmarks/list_table/{{table}}.tsv"
    wildcard_constraints:
        table="|".join(report_jobs.configured),
    conda:
        "../../environment.yml"
    params:
        digest=lambda wildcards: report_jobs.digest(wildcards.table),
        config=options.Uncompared(graph, report_jobs.list_options()["config"]),
    message:
        "Listing the cells of {wildcards.table}"
    shell:
        stage_command("list_table", wildcards=["table"], output=["out"], params=["config"])


rule make_table:
    input:
        code=lambda wildcards: code.of("make_table", report_jobs.tables[wildcards.table].module),
        lines=lambda wildcards: report_jobs.cells(report_jobs.tables[wildcards.table]),
        published=PUBLISHED,
        files=lambda wildcards: report_jobs.inputs(report_jobs.tables[wildcards.table]),
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
        table="|".join(report_jobs.tables),
    conda:
        "../../environment.yml"
    params:
        options=lambda wildcards: options.as_json(graph, report_jobs.table_options(wildcards.table)),
        outside=graph.outside.identity([PUBLISHED]),
        results=lambda wildcards: results,
        out=lambda wildcards, output: dirname(dirname(output[0])),
    message:
        "Making table {wildcards.table}"
    shell:
        stage_command("make_table", input=["lines", "published"], params=["options", "results", "out"])


rule make_figure:
    input:
        code=lambda wildcards: code.of("make_figure", report_jobs.figures[wildcards.figure].module),
        lines=lambda wildcards: report_jobs.cells(report_jobs.figures[wildcards.figure]),
        files=lambda wildcards: report_jobs.inputs(report_jobs.figures[wildcards.figure]),
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
        figure="|".join(report_jobs.figures),
    conda:
        "../../environment.yml"
    params:
        options=lambda wildcards: options.as_json(graph, report_jobs.figure_options(wildcards.figure)),
        results=lambda wildcards: results,
        out=lambda wildcards, output: dirname(dirname(output[0])),
    message:
        "Drawing figure {wildcards.figure}"
    shell:
        stage_command("make_figure", input=["lines"], params=["options", "results", "out"])


rule make_index:
    input:
        code=code.of("make_index", *report_jobs.makers()),
        template=report_jobs.templates(),
        published=PUBLISHED,
        tables=[f"{reports}/tables/{name}.csv" for name in report_jobs.names("main")],
        figures=[f"{reports}/figures/{name}.svg" for name in report_jobs.main_figures()],
        claims=f"{reports}/claims.csv",
        files=report_jobs.page_inputs(),
    output:
        report(f"{reports}/index.html", caption="../report/index.rst", category="Report"),
        contents=f"{reports}/contents/main.json",
        unknowns=multiext(f"{reports}/tables/unknowns", ".csv", ".md", ".tex"),
    log:
        f"{results}/logs/make_index.log",
    benchmark:
        f"{results}/benchmarks/make_index.tsv"
    conda:
        "../../environment.yml"
    params:
        options=options.as_json(graph, report_jobs.page_options()),
        outside=graph.outside.identity([PUBLISHED, *report_jobs.templates()]),
        results=lambda wildcards: results,
        out=lambda wildcards: reports,
    message:
        f"Making the page {reports}/index.html"
    shell:
        stage_command("make_index", input=["published"], output=["contents"], params=["options", "results", "out"])


# A file has one rule, and the page must not wait for ablations: so it is written again once they are there.
use rule make_index as make_contents with:
    input:
        code=code.of("make_index", *report_jobs.makers()),
        template=report_jobs.templates(),
        published=PUBLISHED,
        page=ancient(f"{reports}/index.html"),
        files=lambda wildcards: report_jobs.part_files(wildcards.part),
    output:
        contents=f"{reports}/contents/{{part}}.json",
    log:
        f"{results}/logs/make_contents/{{part}}.log",
    benchmark:
        f"{results}/benchmarks/make_contents/{{part}}.tsv"
    wildcard_constraints:
        part="|".join(report_jobs.parts()),
    message:
        "Adding {wildcards.part} to the page"
