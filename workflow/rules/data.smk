# A corpus in one piece: documents, their split, the token files.


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


if graph.pretraining_data != f"{results}/data":

    use rule tokenize_corpus as tokenize_for_teachers with:
        output:
            tokens=multiext(f"{graph.pretraining_data}/train", ".bin", ".idx", ".json"),
            held_out=multiext(
                f"{graph.pretraining_data}/validation", ".bin", ".idx", ".json"
            ),
            functions=multiext(
                f"{graph.pretraining_data}/functions", ".bin", ".idx", ".json"
            ),
            manifest=f"{graph.pretraining_data}/manifest.json",
        log:
            f"{results}/logs/tokenize_for_teachers.log",
        benchmark:
            f"{results}/benchmarks/tokenize_for_teachers.tsv"
        params:
            values=graph.mix(for_teachers=True),
            folder=lambda wildcards, output: dirname(output.manifest),
            scale=scale,
