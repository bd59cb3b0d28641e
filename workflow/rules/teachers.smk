# Teachers: made here, or brought in. Either way results/<scale>/teachers/<name>/model.

if scale_config.teachers == "pretrain":

    rule pretrain_teacher:
        input:
            code=code.of("pretrain_teacher"),
            digests=[f"{graph.pretraining_data}/train.json", f"{results}/data/tokenizer.sha256"],
            tokens=ancient(f"{graph.pretraining_data}/train.bin"),
            tokenizer=ancient(f"{results}/data/tokenizer"),
        output:
            out=directory(f"{results}/teachers/{{teacher}}/model"),
            digest=f"{results}/teachers/{{teacher}}/model.sha256",
            record=f"{results}/teachers/{{teacher}}/teacher.json",
            history=f"{results}/teachers/{{teacher}}/history.csv",
        log:
            f"{results}/logs/pretrain_teacher/{{teacher}}.log",
        benchmark:
            f"{results}/benchmarks/pretrain_teacher/{{teacher}}.tsv"
        conda:
            "../../environment.yml"
        threads: scale_config.threads.training
        resources:
            gpu=1,
        params:
            options=lambda wildcards: options.as_json(graph, options.pretrain_teacher(graph, wildcards.teacher)),
            state=f"{results}/state",
        message:
            "Pretraining teacher {wildcards.teacher}"
        shell:
            stage_command(
                "pretrain_teacher",
                input=["tokens", "tokenizer"],
                output=["out", "record", "history"],
                params=["options", "state"],
            )

else:

    rule fetch_teacher:
        input:
            code=code.of("fetch_teacher"),
            source=lambda wildcards: graph.teacher_files(wildcards.teacher),
            digest=lambda wildcards: [f"{folder}.sha256" for folder in graph.vocabulary_of(wildcards.teacher)],
            first=lambda wildcards: ancient(graph.vocabulary_of(wildcards.teacher)),
        output:
            out=directory(f"{results}/teachers/{{teacher}}/model"),
            digest=f"{results}/teachers/{{teacher}}/model.sha256",
            record=f"{results}/teachers/{{teacher}}/teacher.json",
        log:
            f"{results}/logs/fetch_teacher/{{teacher}}.log",
        benchmark:
            f"{results}/benchmarks/fetch_teacher/{{teacher}}.tsv"
        conda:
            "../../environment.yml"
        params:
            options=lambda wildcards: options.as_json(graph, options.fetch_teacher(graph, wildcards.teacher)),
            outside=lambda wildcards: graph.outside.identity(graph.teacher_files(wildcards.teacher)),
        message:
            "Bringing in teacher {wildcards.teacher}"
        shell:
            stage_command("fetch_teacher", input=["first"], output=["out", "record"], params=["options"])


rule cache_teacher:
    input:
        code=code.of("cache_teacher"),
        digests=lambda wildcards: [
            f"{results}/teachers/{graph.caches()[wildcards.cache].teacher}/model.sha256",
            f"{results}/data/train.json",
        ],
        teacher=lambda wildcards: ancient(f"{results}/teachers/{graph.caches()[wildcards.cache].teacher}/model"),
        tokens=ancient(f"{results}/data/train.bin"),
    output:
        hidden=f"{results}/cache/{{cache}}/hidden.bin",
        record=f"{results}/cache/{{cache}}/cache.json",
    log:
        f"{results}/logs/cache_teacher/{{cache}}.log",
    benchmark:
        f"{results}/benchmarks/cache_teacher/{{cache}}.tsv"
    conda:
        "../../environment.yml"
    threads: scale_config.threads.training
    resources:
        gpu=1,
    params:
        options=lambda wildcards: options.as_json(graph, options.cache_teacher(graph, wildcards.cache)),
        out=lambda wildcards, output: dirname(output.record),
        state=f"{results}/state",
    message:
        "Computing hidden states {wildcards.cache}"
    shell:
        stage_command("cache_teacher", input=["teacher", "tokens"], params=["options", "out", "state"])
