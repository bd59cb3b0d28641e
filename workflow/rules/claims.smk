# Verdicts on what the paper says: from the main tables' results, and once more when those of all tables are there.


rule judge_claims:
    input:
        code=source_files("judge_claims"),
        published="config/published.csv",
        claims="config/claims.yaml",
        files=report_jobs.claim_inputs(MAIN_CELLS),
    output:
        csv=report(
            f"{reports}/claims.csv",
            caption="../report/claims.rst",
            category="Claims",
            labels={"claims": "main tables"},
        ),
        md=f"{reports}/claims.md",
    log:
        f"{results}/logs/judge_claims.log",
    benchmark:
        f"{results}/benchmarks/judge_claims.tsv"
    conda:
        "../../environment.yml"
    params:
        options=report_jobs.page_options(),
        results=lambda wildcards: results,
    shell:
        "budgeted-lora stage judge-claims --options {params.options:q} --results {params.results}"
        " --published {input.published} --claims {input.claims} --out {output.csv} 2>&1 | tee {log}"


use rule judge_claims as judge_all_claims with:
    input:
        code=source_files("judge_claims"),
        published="config/published.csv",
        claims="config/claims.yaml",
        files=report_jobs.claim_inputs(report_jobs.configured),
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


rule claims:
    input:
        f"{reports}/claims.csv",
