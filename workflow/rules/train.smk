# One student a job. State that survives a kill lies undeclared under results/<scale>/state.


rule train_cell:
    input:
        code=source_files("train"),
        digests=lambda wildcards: [
            f"{results}/students/{graph.student_of(wildcards.cell)}/model.sha256",
            f"{results}/teachers/{graph.recipe_of(wildcards.cell).teacher}/model.sha256",
            f"{results}/data/train.json",
            *[f"{path}.sha256" for path in graph.statistics_files(wildcards.cell)],
        ],
        student=lambda wildcards: ancient(
            f"{results}/students/{graph.student_of(wildcards.cell)}/model"
        ),
        teacher=lambda wildcards: ancient(
            f"{results}/teachers/{graph.recipe_of(wildcards.cell).teacher}/model"
        ),
        tokens=ancient(f"{results}/data/train.bin"),
        cache=lambda wildcards: graph.cache_files(wildcards.cell),
        calibration=ancient(graph.calibration()),
        statistics=lambda wildcards: ancient(graph.statistics_files(wildcards.cell)),
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
    threads: settings.threads.training * settings.gpus_per_run
    resources:
        gpu=settings.gpus_per_run,
    params:
        recipe=lambda wildcards: graph.recipe(wildcards.cell),
        cache=lambda wildcards: graph.cache_option(wildcards.cell),
        statistics=lambda wildcards: graph.statistics_option(wildcards.cell),
        folder=f"{results}/cells/{{cell}}",
        state=f"{results}/state",
        log_every=settings.training.log_every,
        checkpoint_every=settings.training.checkpoint_every,
        device=settings.device,
        threads=settings.threads.training,
        gpus=settings.gpus_per_run,
        scale=scale,
    shell:
        "budgeted-lora stage train --values {params.recipe:q} --cell {wildcards.cell} --student {input.student}"
        " --teacher {input.teacher} --tokens {input.tokens} {params.cache} {params.statistics} --out {params.folder}"
        " --state {params.state} --scale {params.scale} --threads {params.threads} --gpus {params.gpus} --device {params.device}"
        " --log-every {params.log_every} --checkpoint-every {params.checkpoint_every} 2>&1 | tee {log}"
