# Perplexity and in-context learning in one job per model.


rule evaluate_reference:
    input:
        code=code.of("evaluate"),
        digests=[
            f"{results}/{{kind}}/{{name}}/model.sha256",
            f"{results}/data/validation.json",
            f"{results}/data/functions.json",
            f"{results}/data/tokenizer.sha256",
        ],
        probes=graph.probe_files(),
        model=ancient(f"{results}/{{kind}}/{{name}}/model"),
        manifest=ancient(f"{results}/data/manifest.json"),
        tokenizer=ancient(f"{results}/data/tokenizer"),
        student=[],
        uncompressed=[],
        compression=[],
    output:
        perplexity=f"{results}/{{kind}}/{{name}}/perplexity.json",
        windows=f"{results}/{{kind}}/{{name}}/perplexity_windows.parquet",
        icl=f"{results}/{{kind}}/{{name}}/icl.json",
        examples=f"{results}/{{kind}}/{{name}}/icl_examples.parquet",
    log:
        f"{results}/logs/evaluate_reference/{{kind}}_{{name}}.log",
    benchmark:
        f"{results}/benchmarks/evaluate_reference/{{kind}}_{{name}}.tsv"
    wildcard_constraints:
        kind="teachers|students",
        name="[^/]+",
    conda:
        "../../environment.yml"
    threads: scale_config.threads.evaluation
    resources:
        gpu=1,
    params:
        options=options.as_json(graph, options.evaluate(graph)),
        outside=graph.outside.identity(graph.probe_files()),
        tokens=lambda wildcards, input: dirname(input.manifest),
        out=lambda wildcards, output: dirname(output.perplexity),
    message:
        "Scoring {wildcards.kind}/{wildcards.name}"
    shell:
        stage_command(
            "evaluate",
            input=["model", "tokenizer", "student", "uncompressed", "compression"],
            params=["options", "tokens", "out"],
        )


# A compressed student, with the trained one beside it unless that is another one (`models_beside`).
use rule evaluate_reference as score_cell with:
    input:
        code=code.of("evaluate"),
        digests=lambda wildcards: [
            f"{results}/cells/{wildcards.cell}/compressed/{wildcards.variant}/model.sha256",
            *[f"{path}.sha256" for path in graph.trained_beside(**wildcards)],
            f"{results}/data/validation.json",
            f"{results}/data/functions.json",
            f"{results}/data/tokenizer.sha256",
        ],
        probes=graph.probe_files(),
        model=ancient(f"{results}/cells/{{cell}}/compressed/{{variant}}/model"),
        manifest=ancient(f"{results}/data/manifest.json"),
        tokenizer=ancient(f"{results}/data/tokenizer"),
        student=lambda wildcards: ancient(graph.untrained_beside(**wildcards)),
        uncompressed=lambda wildcards: ancient(graph.trained_beside(**wildcards)),
        compression=ancient(f"{results}/cells/{{cell}}/compressed/{{variant}}/compression.json"),
    output:
        perplexity=f"{results}/cells/{{cell}}/compressed/{{variant}}/perplexity.json",
        windows=f"{results}/cells/{{cell}}/compressed/{{variant}}/perplexity_windows.parquet",
    log:
        f"{results}/logs/score_cell/{{cell}}_{{variant}}.log",
    benchmark:
        f"{results}/benchmarks/score_cell/{{cell}}_{{variant}}.tsv"
    params:
        options=lambda wildcards: options.as_json(graph, options.evaluate(graph, **wildcards, icl=False)),
        outside=graph.outside.identity(graph.probe_files()),
        tokens=lambda wildcards, input: dirname(input.manifest),
        out=lambda wildcards, output: dirname(output.perplexity),
    message:
        "Scoring {wildcards.cell} ({wildcards.variant}): perplexity"


# Cells of the main tables are scored in context too, in the default variant.
use rule score_cell as evaluate_cell with:
    output:
        perplexity=f"{results}/cells/{{cell}}/compressed/{{variant}}/perplexity.json",
        windows=f"{results}/cells/{{cell}}/compressed/{{variant}}/perplexity_windows.parquet",
        icl=f"{results}/cells/{{cell}}/compressed/{{variant}}/icl.json",
        examples=f"{results}/cells/{{cell}}/compressed/{{variant}}/icl_examples.parquet",
    log:
        f"{results}/logs/evaluate_cell/{{cell}}_{{variant}}.log",
    benchmark:
        f"{results}/benchmarks/evaluate_cell/{{cell}}_{{variant}}.tsv"
    wildcard_constraints:
        cell="|".join(graph.listed(ICL_TABLES)) or "none",
        variant=DEFAULT_VARIANT,
    params:
        options=lambda wildcards: options.as_json(graph, options.evaluate(graph, cell=wildcards.cell)),
        outside=graph.outside.identity(graph.probe_files()),
        tokens=lambda wildcards, input: dirname(input.manifest),
        out=lambda wildcards, output: dirname(output.perplexity),
    message:
        "Scoring {wildcards.cell}: perplexity and in-context learning"


ruleorder: evaluate_cell > score_cell


# In the token file itself: so it is one search for all corpora, and an evaluation setting makes no token file again.
rule search_prompts:
    input:
        code=code.of("search_prompts"),
        digests=[f"{results}/data/train.json", f"{results}/data/tokenizer.sha256"],
        probes=graph.probe_files(),
        tokens=ancient(f"{results}/data/train.bin"),
        tokenizer=ancient(f"{results}/data/tokenizer"),
    output:
        out=f"{results}/data/contamination.json",
    log:
        f"{results}/logs/search_prompts.log",
    benchmark:
        f"{results}/benchmarks/search_prompts.tsv"
    conda:
        "../../environment.yml"
    params:
        options=options.as_json(graph, options.search_prompts(graph)),
        outside=graph.outside.identity(graph.probe_files()),
    message:
        "Searching prompts and answers in the training text"
    shell:
        stage_command("search_prompts", input=["tokens", "tokenizer"], output=["out"], params=["options"])


if scale_config.calibration.teachers:

    rule calibrate_teachers:
        input:
            code=code.of("calibrate_teachers"),
            published=PUBLISHED,
            scores=[f"{results}/teachers/{name}/perplexity.json" for name in graph.teachers],
        output:
            out=f"{results}/calibration.json",
            report=report(
                f"{reports}/calibration.md",
                caption="../report/calibration.rst",
                category="Tables",
                labels={"table": "calibration"},
            ),
        log:
            f"{results}/logs/calibrate_teachers.log",
        benchmark:
            f"{results}/benchmarks/calibrate_teachers.tsv"
        conda:
            "../../environment.yml"
        params:
            options=options.as_json(graph, options.calibrate_teachers(graph)),
            outside=graph.outside.identity([PUBLISHED]),
        message:
            "Comparing the teachers with Table 1"
        shell:
            stage_command(
                "calibrate_teachers", input=["scores", "published"], output=["out", "report"], params=["options"]
            )

    rule calibration:
        input:
            f"{results}/calibration.json",
        message:
            "Teachers compared with Table 1"
