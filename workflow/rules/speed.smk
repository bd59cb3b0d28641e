# What a structure buys in time, measured once a structure and alone on the machine.


rule measure_speed:
    input:
        code=source_files("speed"),
        tokens=f"{results}/data/train.json",
    output:
        f"{results}/speed/{{structure}}.json",
    log:
        f"{results}/logs/measure_speed/{{structure}}.log",
    benchmark:
        f"{results}/benchmarks/measure_speed/{{structure}}.tsv"
    conda:
        "../../environment.yml"
    threads: settings.threads.timing
    resources:
        gpu=1,
    params:
        values=lambda wildcards: graph.speed_values(wildcards.structure),
        settings=graph.section("speed"),
        device=settings.device,
        threads=settings.threads.timing,
        scale=scale,
    shell:
        "budgeted-lora stage speed --values {params.values:q} --settings {params.settings:q} --tokens {input.tokens}"
        " --out {output} --scale {params.scale} --threads {params.threads} --device {params.device} 2>&1 | tee {log}"


# Where order of removal or ranks come from the student itself, its structure is known when it is compressed.
rule measure_cell_speed:
    input:
        code=source_files("speed"),
        tokens=f"{results}/data/train.json",
        compressed=f"{results}/cells/{{cell}}/compressed/default/compression.json",
    output:
        f"{results}/speed/cell_{{cell}}.json",
    log:
        f"{results}/logs/measure_cell_speed/{{cell}}.log",
    benchmark:
        f"{results}/benchmarks/measure_cell_speed/{{cell}}.tsv"
    conda:
        "../../environment.yml"
    threads: settings.threads.timing
    resources:
        gpu=1,
    params:
        values=lambda wildcards: graph.own_speed_values(wildcards.cell),
        settings=graph.section("speed"),
        device=settings.device,
        threads=settings.threads.timing,
        scale=scale,
    shell:
        "budgeted-lora stage speed --values {params.values:q} --settings {params.settings:q} --tokens {input.tokens}"
        " --compressed {input.compressed} --out {output} --scale {params.scale} --threads {params.threads}"
        " --device {params.device} 2>&1 | tee {log}"
