# What the budget left of each student, as plain linear layers; one folder for each compression setting.


rule compress_cell:
    input:
        code=source_files("compress"),
        digests=lambda wildcards: [
            f"{results}/cells/{wildcards.cell}/trained.sha256",
            f"{results}/students/{graph.student_of(wildcards.cell)}/model.sha256",
            f"{results}/data/validation.json",
            f"{results}/data/tokenizer.sha256",
            *graph.truncation_files(wildcards.cell, wildcards.settings),
        ],
        student=lambda wildcards: ancient(
            f"{results}/students/{graph.student_of(wildcards.cell)}/model"
        ),
        trained=ancient(f"{results}/cells/{{cell}}/trained"),
        tokens=ancient(f"{results}/data/validation.bin"),
        tokenizer=ancient(f"{results}/data/tokenizer"),
    output:
        model=directory(f"{results}/cells/{{cell}}/compressed/{{settings}}/model"),
        digest=f"{results}/cells/{{cell}}/compressed/{{settings}}/model.sha256",
        record=f"{results}/cells/{{cell}}/compressed/{{settings}}/compression.json",
    log:
        f"{results}/logs/compress_cell/{{cell}}_{{settings}}.log",
    benchmark:
        f"{results}/benchmarks/compress_cell/{{cell}}_{{settings}}.tsv"
    conda:
        "../../environment.yml"
    threads: settings.threads.evaluation
    params:
        recipe=lambda wildcards: graph.recipe(wildcards.cell),
        settings=lambda wildcards: graph.compression(wildcards.settings),
        statistics=lambda wildcards: graph.truncation_option(
            wildcards.cell, wildcards.settings
        ),
        folder=f"{results}/cells/{{cell}}/compressed/{{settings}}",
        threads=settings.threads.evaluation,
        scale=scale,
    shell:
        "budgeted-lora stage compress --values {params.recipe:q} --settings {params.settings:q} --cell {wildcards.cell}"
        " --student {input.student} --trained {input.trained} --tokens {input.tokens} --tokenizer {input.tokenizer}"
        " {params.statistics} --out {params.folder} --scale {params.scale} --threads {params.threads} 2>&1 | tee {log}"
