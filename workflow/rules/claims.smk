# Verdicts on what the paper says: from the main tables' results, and once more when those of all tables are there.


rule judge_claims:
    input:
        code=code.of("judge_claims"),
        published=PUBLISHED,
        claims=CLAIMS,
        files=report_jobs.claim_inputs(MAIN_CELLS),
    output:
        out=report(
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
        options=options.as_json(graph, report_jobs.page_options()),
        outside=graph.outside.identity([PUBLISHED, CLAIMS]),
        results=lambda wildcards: results,
    message:
        "Judging the claims by the main tables"
    shell:
        stage_command("judge_claims", input=["published", "claims"], output=["out"], params=["options", "results"])


use rule judge_claims as judge_all_claims with:
    input:
        code=code.of("judge_claims"),
        published=PUBLISHED,
        claims=CLAIMS,
        files=report_jobs.claim_inputs(report_jobs.configured),
    output:
        out=report(
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
    message:
        "Judging the claims by all tables"


rule claims:
    input:
        f"{reports}/claims.csv",
    message:
        f"Verdicts on the claims: {reports}/claims.md"
