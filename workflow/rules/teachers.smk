# Teachers: made here, or brought in. Either way results/<scale>/teachers/<name>/model.

if settings.teachers == "pretrain":

    rule pretrain_teacher:
        input:
            code=source_files("pretrain"),
            digests=[
                f"{graph.pretraining_data}/train.json",
                f"{results}/data/tokenizer.sha256",
            ],
            tokens=ancient(f"{graph.pretraining_data}/train.bin"),
            tokenizer=ancient(f"{results}/data/tokenizer"),
        output:
            model=directory(f"{results}/teachers/{{teacher}}/model"),
            digest=f"{results}/teachers/{{teacher}}/model.sha256",
            record=f"{results}/teachers/{{teacher}}/teacher.json",
            history=f"{results}/teachers/{{teacher}}/history.csv",
        log:
            f"{results}/logs/pretrain_teacher/{{teacher}}.log",
        benchmark:
            f"{results}/benchmarks/pretrain_teacher/{{teacher}}.tsv"
        conda:
            "../../environment.yml"
        threads: settings.threads.training
        resources:
            gpu=1,
        params:
            spec=lambda wildcards: graph.teacher_spec(wildcards.teacher),
            values=graph.pretraining(),
            sequence_length=settings.sequence_length,
            rows=settings.rows,
            device=settings.device,
            threads=settings.threads.training,
            scale=scale,
            state=f"{results}/state",
        shell:
            "budgeted-lora stage pretrain-teacher --name {wildcards.teacher} --spec {params.spec:q}"
            " --values {params.values:q} --sequence-length {params.sequence_length} --rows {params.rows}"
            " --tokens {input.tokens} --tokenizer {input.tokenizer} --out {output.model} --record {output.record}"
            " --history {output.history} --state {params.state} --scale {params.scale} --threads {params.threads}"
            " --device {params.device} 2>&1 | tee {log}"

else:

    rule fetch_teacher:
        input:
            code=source_files("fetch"),
            source=lambda wildcards: graph.teacher_files(wildcards.teacher),
            first=lambda wildcards: graph.first_teacher_digest(wildcards.teacher),
        output:
            model=directory(f"{results}/teachers/{{teacher}}/model"),
            digest=f"{results}/teachers/{{teacher}}/model.sha256",
            record=f"{results}/teachers/{{teacher}}/teacher.json",
        log:
            f"{results}/logs/fetch_teacher/{{teacher}}.log",
        benchmark:
            f"{results}/benchmarks/fetch_teacher/{{teacher}}.tsv"
        conda:
            "../../environment.yml"
        params:
            source=settings.teachers,
            spec=lambda wildcards: graph.teacher_spec(wildcards.teacher),
            values=graph.held_out_rule(),
            first=lambda wildcards: graph.first_teacher_option(wildcards.teacher),
            scale=scale,
        shell:
            "budgeted-lora stage fetch-teacher --name {wildcards.teacher} --source {params.source}"
            " --spec {params.spec:q} --values {params.values:q} {params.first} --out {output.model}"
            " --record {output.record} --scale {params.scale} 2>&1 | tee {log}"


rule cache_teacher:
    input:
        code=source_files("cache"),
        digests=lambda wildcards: [
            f"{results}/teachers/{graph.caches()[wildcards.cache].teacher}/model.sha256",
            f"{results}/data/train.json",
        ],
        teacher=lambda wildcards: ancient(
            f"{results}/teachers/{graph.caches()[wildcards.cache].teacher}/model"
        ),
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
    threads: settings.threads.training
    resources:
        gpu=1,
    params:
        windows=lambda wildcards: graph.cached_windows(wildcards.cache),
        sequence_length=settings.sequence_length,
        rows=lambda wildcards: graph.caches()[wildcards.cache].rows,
        batch_windows=settings.training.micro_batch_windows,
        precision=settings.training.precision,
        folder=f"{results}/cache/{{cache}}",
        state=f"{results}/state",
        device=settings.device,
        threads=settings.threads.training,
        scale=scale,
    shell:
        "budgeted-lora stage cache-teacher --teacher {input.teacher} --tokens {input.tokens}"
        " --windows {params.windows} --sequence-length {params.sequence_length} --rows {params.rows}"
        " --batch-windows {params.batch_windows} --precision {params.precision} --out {params.folder}"
        " --state {params.state} --scale {params.scale} --threads {params.threads} --device {params.device}"
        " 2>&1 | tee {log}"
