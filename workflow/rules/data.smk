# A corpus in one piece: documents, their split, the token files.


rule collect_corpus:
    input:
        code=code.of("collect_corpus"),
        files=graph.corpus_files(),
    output:
        out=f"{results}/data/documents.parquet",
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
        options=options.as_json(graph, options.collect_corpus(graph)),
        outside=graph.corpus_identity(),
        processes=lambda wildcards, threads: threads,
    message:
        "Reading and splitting the documents"
    shell:
        stage_command("collect_corpus", output=["out", "record"], params=["options", "processes"])


rule tokenize_corpus:
    input:
        code=code.of("tokenize_corpus"),
        digests=[f"{results}/data/documents.parquet.sha256", f"{results}/data/tokenizer.sha256"],
        documents=ancient(f"{results}/data/documents.parquet"),
        collected=ancient(f"{results}/data/corpus.json"),
        tokenizer=ancient(f"{results}/data/tokenizer"),
    output:
        token_files(f"{results}/data"),
        manifest=f"{results}/data/manifest.json",
    log:
        f"{results}/logs/tokenize_corpus.log",
    benchmark:
        f"{results}/benchmarks/tokenize_corpus.tsv"
    conda:
        "../../environment.yml"
    params:
        options=options.as_json(graph, options.tokenize_corpus(graph)),
        out=lambda wildcards, output: dirname(output.manifest),
    message:
        "Writing token files"
    shell:
        stage_command("tokenize_corpus", input=["documents", "collected", "tokenizer"], params=["options", "out"])


if graph.pretraining_data != f"{results}/data":

    use rule tokenize_corpus as tokenize_for_teachers with:
        output:
            token_files(graph.pretraining_data),
            manifest=f"{graph.pretraining_data}/manifest.json",
        log:
            f"{results}/logs/tokenize_for_teachers.log",
        benchmark:
            f"{results}/benchmarks/tokenize_for_teachers.tsv"
        params:
            options=options.as_json(graph, options.tokenize_corpus(graph, for_teachers=True)),
            out=lambda wildcards, output: dirname(output.manifest),
        message:
            "Writing token files for the teachers"
