# The untrained student, cut from the first teacher.


rule cut_student:
    input:
        code=source_files("student"),
        digest=f"{results}/teachers/{settings.first_teacher}/model.sha256",
        teacher=ancient(f"{results}/teachers/{settings.first_teacher}/model"),
    output:
        model=directory(f"{results}/students/{{init}}/model"),
        digest=f"{results}/students/{{init}}/model.sha256",
        record=f"{results}/students/{{init}}/student.json",
    log:
        f"{results}/logs/cut_student/{{init}}.log",
    benchmark:
        f"{results}/benchmarks/cut_student/{{init}}.tsv"
    conda:
        "../../environment.yml"
    params:
        depth=settings.student.layers,
        scale=scale,
    shell:
        "budgeted-lora stage cut-student --teacher {input.teacher} --init {wildcards.init} --depth {params.depth}"
        " --out {output.model} --record {output.record} --scale {params.scale} 2>&1 | tee {log}"
