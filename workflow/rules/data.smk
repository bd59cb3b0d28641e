# Documents, their split, the tokenizer, the token files.


rule collect_corpus:
    input:
        code=source_files("collect"),
        files=graph.corpus_files(),
    output:
        documents=f"{results}/data/documents.parquet",
        digest=f"{results}/data/documents.parquet.sha256",
        record=f"{results}/data/corpus.json",
    log:
        f"{results}/logs/collect_corpus.log",
    benchmark:
        f"{results}/benchmarks/collect_corpus.tsv"
    conda:
        "../../environment.yml"
    threads: 2
    params:
        values=graph.corpus(),
        scale=scale,
    shell:
        "budgeted-lora stage collect --values {params.values:q} --out {output.documents} --record {output.record}"
        " --scale {params.scale} --processes {threads} 2>&1 | tee {log}"


if settings.teachers == "pretrain":

    rule train_tokenizer:
        input:
            code=source_files("tokenizer"),
            digest=f"{results}/data/documents.parquet.sha256",
            documents=ancient(f"{results}/data/documents.parquet"),
        output:
            folder=directory(f"{results}/data/tokenizer"),
            digest=f"{results}/data/tokenizer.sha256",
        log:
            f"{results}/logs/train_tokenizer.log",
        benchmark:
            f"{results}/benchmarks/train_tokenizer.tsv"
        conda:
            "../../environment.yml"
        params:
            values=graph.tokenizer_values(),
        shell:
            "budgeted-lora stage train-tokenizer --values {params.values:q} --documents {input.documents}"
            " --out {output.folder} 2>&1 | tee {log}"

elif settings.teachers == "shipped":

    rule copy_shipped_tokenizer:
        input:
            code=source_files("tokenizer"),
            shipped=graph.shipped_tokenizer_files(),
        output:
            folder=directory(f"{results}/data/tokenizer"),
            digest=f"{results}/data/tokenizer.sha256",
        log:
            f"{results}/logs/copy_tokenizer.log",
        benchmark:
            f"{results}/benchmarks/copy_tokenizer.tsv"
        conda:
            "../../environment.yml"
        shell:
            "budgeted-lora stage copy-tokenizer --out {output.folder} 2>&1 | tee {log}"

else:

    rule copy_checkpoint_tokenizer:
        input:
            code=source_files("tokenizer"),
            digest=f"{results}/teachers/{settings.first_teacher}/model.sha256",
            model=ancient(f"{results}/teachers/{settings.first_teacher}/model"),
        output:
            folder=directory(f"{results}/data/tokenizer"),
            digest=f"{results}/data/tokenizer.sha256",
        log:
            f"{results}/logs/copy_tokenizer.log",
        benchmark:
            f"{results}/benchmarks/copy_tokenizer.tsv"
        conda:
            "../../environment.yml"
        shell:
            "budgeted-lora stage copy-tokenizer --source {input.model} --out {output.folder} 2>&1 | tee {log}"


rule tokenize_corpus:
    input:
        code=source_files("tokenize"),
        digests=[
            f"{results}/data/documents.parquet.sha256",
            f"{results}/data/tokenizer.sha256",
        ],
        documents=ancient(f"{results}/data/documents.parquet"),
        record=ancient(f"{results}/data/corpus.json"),
        tokenizer=ancient(f"{results}/data/tokenizer"),
    output:
        tokens=multiext(f"{results}/data/train", ".bin", ".idx", ".json"),
        held_out=multiext(f"{results}/data/validation", ".bin", ".idx", ".json"),
        functions=multiext(f"{results}/data/functions", ".bin", ".idx", ".json"),
        manifest=f"{results}/data/manifest.json",
    log:
        f"{results}/logs/tokenize_corpus.log",
    benchmark:
        f"{results}/benchmarks/tokenize_corpus.tsv"
    conda:
        "../../environment.yml"
    params:
        values=graph.mix(),
        folder=lambda wildcards, output: dirname(output.manifest),
        scale=scale,
    shell:
        "budgeted-lora stage tokenize --values {params.values:q} --documents {input.documents} --record {input.record}"
        " --tokenizer {input.tokenizer} --out {params.folder} --scale {params.scale} 2>&1 | tee {log}"
