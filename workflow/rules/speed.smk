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


# A student beside its int8 form, where the scale asks for it: alone on the machine too, since both are timed.
if graph.asked("int8"):

    rule measure_int8:
        input:
            code=code.of("measure_int8"),
            digests=[
                f"{results}/cells/{{cell}}/compressed/{{variant}}/model.sha256",
                f"{results}/data/validation.json",
            ],
            model=ancient(f"{results}/cells/{{cell}}/compressed/{{variant}}/model"),
            tokens=ancient(f"{results}/data/validation.bin"),
        output:
            out=f"{results}/cells/{{cell}}/compressed/{{variant}}/int8.json",
        log:
            f"{results}/logs/measure_int8/{{cell}}_{{variant}}.log",
        benchmark:
            f"{results}/benchmarks/measure_int8/{{cell}}_{{variant}}.tsv"
        conda:
            "../../environment.yml"
        threads: scale_config.threads.timing
        resources:
            gpu=1,
        params:
            options=lambda wildcards: options.as_json(graph, options.measure_int8(graph, wildcards.cell)),
        message:
            "Measuring {wildcards.cell} in int8"
        shell:
            stage_command("measure_int8", input=["model", "tokens"], output=["out"], params=["options"])
