# Verdicts on what the paper says: from the main tables' results, and once more when those of all tables are there.


rule judge_claims:
    input:
        code=source_files("report"),
        published="config/published.csv",
        claims="config/claims.yaml",
        files=graph.claim_inputs(MAIN_CELLS),
    output:
        csv=report(
            f"{reports}/claims.csv",
            caption="../report/claims.rst",
            category="Claims",
            labels={"claims": "main tables"},
        ),
        md=f"{reports}/claims.md",
        unknowns=multiext(f"{reports}/tables/unknowns", ".csv", ".md", ".tex"),
    log:
        f"{results}/logs/judge_claims.log",
    benchmark:
        f"{results}/benchmarks/judge_claims.tsv"
    conda:
        "../../environment.yml"
    params:
        config=graph.whole(),
        results=lambda wildcards: results,
        reports=lambda wildcards, output: dirname(output.csv),
    shell:
        "budgeted-lora stage claims --config {params.config:q} --results {params.results} --published {input.published}"
        " --claims {input.claims} --out {output.csv} --unknowns {params.reports} 2>&1 | tee {log}"


rule judge_all_claims:
    input:
        code=source_files("report"),
        published="config/published.csv",
        claims="config/claims.yaml",
        files=graph.claim_inputs(settings.tables),
    output:
        csv=report(
            f"{reports}/claims_all.csv",
            caption="../report/claims.rst",
            category="Claims",
            labels={"claims": "all tables"},
        ),
        md=f"{reports}/claims_all.md",
    log:
        f"{results}/logs/judge_all_claims.log",
    benchmark:
        f"{results}/benchmarks/judge_all_claims.tsv"
    conda:
        "../../environment.yml"
    params:
        config=graph.whole(),
        results=lambda wildcards: results,
    shell:
        "budgeted-lora stage claims --config {params.config:q} --results {params.results} --published {input.published}"
        " --claims {input.claims} --out {output.csv} 2>&1 | tee {log}"


rule claims:
    input:
        f"{reports}/claims.csv",
