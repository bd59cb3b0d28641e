# Perplexity and in-context learning in one job a model.


rule evaluate_reference:
    input:
        code=source_files("evaluate"),
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
    threads: settings.threads.evaluation
    resources:
        gpu=1,
    params:
        values=graph.evaluation(),
        folder=lambda wildcards, output: dirname(output.perplexity),
        data=lambda wildcards, input: dirname(input.manifest),
        device=settings.device,
        threads=settings.threads.evaluation,
        scale=scale,
    shell:
        "budgeted-lora stage evaluate --values {params.values:q} --model {input.model} --tokens {params.data}"
        " --tokenizer {input.tokenizer} --out {params.folder} --scale {params.scale} --threads {params.threads}"
        " --device {params.device} 2>&1 | tee {log}"


rule evaluate_cell:
    input:
        code=source_files("evaluate"),
        digests=[
            f"{results}/cells/{{cell}}/compressed/default/model.sha256",
            f"{results}/cells/{{cell}}/trained.sha256",
            f"{results}/data/validation.json",
            f"{results}/data/functions.json",
            f"{results}/data/tokenizer.sha256",
        ],
        probes=graph.probe_files(),
        model=ancient(f"{results}/cells/{{cell}}/compressed/default/model"),
        trained=ancient(f"{results}/cells/{{cell}}/trained"),
        student=lambda wildcards: ancient(
            f"{results}/students/{graph.student_of(wildcards.cell)}/model"
        ),
        manifest=ancient(f"{results}/data/manifest.json"),
        tokenizer=ancient(f"{results}/data/tokenizer"),
    output:
        perplexity=f"{results}/cells/{{cell}}/compressed/default/perplexity.json",
        windows=f"{results}/cells/{{cell}}/compressed/default/perplexity_windows.parquet",
        icl=f"{results}/cells/{{cell}}/compressed/default/icl.json",
        examples=f"{results}/cells/{{cell}}/compressed/default/icl_examples.parquet",
    log:
        f"{results}/logs/evaluate_cell/{{cell}}.log",
    benchmark:
        f"{results}/benchmarks/evaluate_cell/{{cell}}.tsv"
    wildcard_constraints:
        cell="|".join(graph.listed(ICL_TABLES)) or "none",
    conda:
        "../../environment.yml"
    threads: settings.threads.evaluation
    resources:
        gpu=1,
    params:
        values=graph.evaluation(),
        folder=lambda wildcards, output: dirname(output.perplexity),
        data=lambda wildcards, input: dirname(input.manifest),
        device=settings.device,
        threads=settings.threads.evaluation,
        scale=scale,
    shell:
        "budgeted-lora stage evaluate --values {params.values:q} --model {input.model} --student {input.student}"
        " --uncompressed {input.trained} --cell {wildcards.cell} --tokens {params.data} --tokenizer {input.tokenizer}"
        " --out {params.folder} --scale {params.scale} --threads {params.threads} --device {params.device}"
        " 2>&1 | tee {log}"


# Cells of ablations, and other compression settings than the default, are scored by perplexity only.
ruleorder: evaluate_cell > score_cell


rule score_cell:
    input:
        code=source_files("evaluate"),
        digests=[
            f"{results}/cells/{{cell}}/compressed/{{settings}}/model.sha256",
            f"{results}/cells/{{cell}}/trained.sha256",
            f"{results}/data/validation.json",
            f"{results}/data/functions.json",
            f"{results}/data/tokenizer.sha256",
        ],
        probes=graph.probe_files(),
        model=ancient(f"{results}/cells/{{cell}}/compressed/{{settings}}/model"),
        trained=ancient(f"{results}/cells/{{cell}}/trained"),
        student=lambda wildcards: ancient(
            f"{results}/students/{graph.student_of(wildcards.cell)}/model"
        ),
        manifest=ancient(f"{results}/data/manifest.json"),
        tokenizer=ancient(f"{results}/data/tokenizer"),
    output:
        perplexity=f"{results}/cells/{{cell}}/compressed/{{settings}}/perplexity.json",
        windows=f"{results}/cells/{{cell}}/compressed/{{settings}}/perplexity_windows.parquet",
    log:
        f"{results}/logs/score_cell/{{cell}}_{{settings}}.log",
    benchmark:
        f"{results}/benchmarks/score_cell/{{cell}}_{{settings}}.tsv"
    conda:
        "../../environment.yml"
    threads: settings.threads.evaluation
    resources:
        gpu=1,
    params:
        values=graph.evaluation(),
        folder=lambda wildcards, output: dirname(output.perplexity),
        data=lambda wildcards, input: dirname(input.manifest),
        device=settings.device,
        threads=settings.threads.evaluation,
        scale=scale,
    shell:
        "budgeted-lora stage evaluate --values {params.values:q} --model {input.model} --student {input.student}"
        " --uncompressed {input.trained} --cell {wildcards.cell} --tokens {params.data} --tokenizer {input.tokenizer}"
        " --out {params.folder} --scale {params.scale} --threads {params.threads} --device {params.device}"
        " --no-icl 2>&1 | tee {log}"


if settings.calibration.teachers:

    rule calibrate_teachers:
        input:
            code=source_files("calibrate"),
            published="config/published.csv",
            scores=graph.teacher_scores(),
        output:
            record=f"{results}/calibration.json",
            page=report(
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
            values=graph.section("calibration"),
            scale=scale,
        shell:
            "budgeted-lora stage calibrate {input.scores} --values {params.values:q} --published {input.published}"
            " --out {output.record} --report {output.page} --scale {params.scale} 2>&1 | tee {log}"

    rule calibration:
        input:
            f"{results}/calibration.json",
