# Speed of a structure, measured once per structure and alone on the machine.


# A structure that depends on the student's weights is read from the record of the student's compression.
rule measure_speed:
    input:
        code=code.of("measure_speed"),
        tokens=f"{results}/data/train.json",
        compressed=lambda wildcards: graph.structure_record(wildcards.structure),
    output:
        out=f"{results}/speed/{{structure}}.json",
    log:
        f"{results}/logs/measure_speed/{{structure}}.log",
    benchmark:
        f"{results}/benchmarks/measure_speed/{{structure}}.tsv"
    conda:
        "../../environment.yml"
    threads: scale_config.threads.timing
    resources:
        gpu=1,
    params:
        options=lambda wildcards: options.as_json(graph, options.measure_speed(graph, wildcards.structure)),
    message:
        "Timing structure {wildcards.structure}"
    shell:
        stage_command("measure_speed", input=["tokens", "compressed"], output=["out"], params=["options"])
