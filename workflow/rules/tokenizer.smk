# The tokenizer that all models share: trained here with the teachers, or copied from the shipped or first checkpoint.

if scale_config.teachers == "pretrain":

    rule train_tokenizer:
        input:
            code=code.of("train_tokenizer"),
            digest=f"{results}/data/documents.parquet.sha256",
            documents=ancient(f"{results}/data/documents.parquet"),
        output:
            out=directory(f"{results}/data/tokenizer"),
            digest=f"{results}/data/tokenizer.sha256",
        log:
            f"{results}/logs/train_tokenizer.log",
        benchmark:
            f"{results}/benchmarks/train_tokenizer.tsv"
        conda:
            "../../environment.yml"
        params:
            options=options.as_json(graph, options.train_tokenizer(graph)),
        message:
            "Training the tokenizer"
        shell:
            stage_command("train_tokenizer", input=["documents"], output=["out"], params=["options"])

else:

    rule copy_tokenizer:
        input:
            code=code.of("copy_tokenizer"),
            digest=[f"{folder}.sha256" for folder in graph.tokenizer_source()],
            source=ancient(graph.tokenizer_source()),
            shipped=graph.tokenizer_files(),
        output:
            out=directory(f"{results}/data/tokenizer"),
            digest=f"{results}/data/tokenizer.sha256",
        log:
            f"{results}/logs/copy_tokenizer.log",
        benchmark:
            f"{results}/benchmarks/copy_tokenizer.tsv"
        conda:
            "../../environment.yml"
        params:
            outside=graph.outside.identity(graph.tokenizer_files()),
        message:
            "Copying the tokenizer"
        shell:
            stage_command("copy_tokenizer", input=["source"], output=["out"])
