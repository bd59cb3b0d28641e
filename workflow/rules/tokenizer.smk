# The tokenizer: trained here, shipped, or the checkpoint's own.

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
