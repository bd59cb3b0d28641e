# One student per job. The state that survives a kill lies under results/<scale>/state and is no output.


rule train_cell:
    input:
        code=code.of("train_cell"),
        digests=lambda wildcards: [
            f"{results}/students/{graph.student_of(wildcards.cell)}/model.sha256",
            f"{results}/teachers/{graph.recipe_of(wildcards.cell).teacher}/model.sha256",
            f"{results}/data/train.json",
            *[f"{path}/cache.json" for path in graph.cache_folder(wildcards.cell)],
            *[f"{path}.sha256" for path in graph.statistics_read(wildcards.cell)],
        ],
        student=lambda wildcards: ancient(f"{results}/students/{graph.student_of(wildcards.cell)}/model"),
        teacher=lambda wildcards: ancient(f"{results}/teachers/{graph.recipe_of(wildcards.cell).teacher}/model"),
        tokens=ancient(f"{results}/data/train.bin"),
        statistics=lambda wildcards: ancient(graph.statistics_read(wildcards.cell)),
        calibration=ancient(graph.calibration()),
    output:
        model=directory(f"{results}/cells/{{cell}}/trained"),
        digest=f"{results}/cells/{{cell}}/trained.sha256",
        record=f"{results}/cells/{{cell}}/train.json",
        history=f"{results}/cells/{{cell}}/history.csv",
        retention=f"{results}/cells/{{cell}}/retention.csv",
    log:
        f"{results}/logs/train_cell/{{cell}}.log",
    benchmark:
        f"{results}/benchmarks/train_cell/{{cell}}.tsv"
    conda:
        "../../environment.yml"
    threads: scale_config.threads.training * scale_config.gpus_per_run
    resources:
        gpu=scale_config.gpus_per_run,
    params:
        options=lambda wildcards: options.as_json(graph, options.train_cell(graph, wildcards.cell)),
        cache=lambda wildcards: graph.cache_folder(wildcards.cell),
        out=lambda wildcards, output: dirname(output.record),
        state=f"{results}/state",
    message:
        "Training {wildcards.cell}"
    shell:
        stage_command(
            "train_cell",
            input=["student", "teacher", "tokens", "statistics"],
            params=["options", "cache", "out", "state"],
        )
