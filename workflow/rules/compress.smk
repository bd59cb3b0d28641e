# What the budget left of each student, as plain linear layers; one folder per variant of compression.


rule compress_cell:
    input:
        code=code.of("compress_cell"),
        digests=lambda wildcards: [
            f"{results}/cells/{wildcards.cell}/trained.sha256",
            f"{results}/students/{graph.student_of(wildcards.cell)}/model.sha256",
            f"{results}/data/validation.json",
            f"{results}/data/tokenizer.sha256",
            *[f"{path}.sha256" for path in graph.statistics_read(**wildcards)],
        ],
        student=lambda wildcards: ancient(f"{results}/students/{graph.student_of(wildcards.cell)}/model"),
        trained=ancient(f"{results}/cells/{{cell}}/trained"),
        tokens=ancient(f"{results}/data/validation.bin"),
        tokenizer=ancient(f"{results}/data/tokenizer"),
        statistics=lambda wildcards: ancient(graph.statistics_read(**wildcards)),
    output:
        model=directory(f"{results}/cells/{{cell}}/compressed/{{variant}}/model"),
        digest=f"{results}/cells/{{cell}}/compressed/{{variant}}/model.sha256",
        record=f"{results}/cells/{{cell}}/compressed/{{variant}}/compression.json",
    log:
        f"{results}/logs/compress_cell/{{cell}}_{{variant}}.log",
    benchmark:
        f"{results}/benchmarks/compress_cell/{{cell}}_{{variant}}.tsv"
    conda:
        "../../environment.yml"
    threads: scale_config.threads.evaluation
    params:
        options=lambda wildcards: options.as_json(
            graph, options.compress_cell(graph, wildcards.cell, wildcards.variant)
        ),
        out=lambda wildcards, output: dirname(output.record),
    message:
        "Compressing {wildcards.cell} ({wildcards.variant})"
    shell:
        stage_command(
            "compress_cell",
            input=["student", "trained", "tokens", "tokenizer", "statistics"],
            params=["options", "out"],
        )
