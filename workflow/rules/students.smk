# The untrained students, cut from the first teacher.


rule cut_student:
    input:
        code=source_files("student"),
        digest=f"{results}/teachers/{settings.first_teacher}/model.sha256",
        teacher=ancient(f"{results}/teachers/{settings.first_teacher}/model"),
    output:
        model=directory(f"{results}/students/{{student}}/model"),
        digest=f"{results}/students/{{student}}/model.sha256",
        record=f"{results}/students/{{student}}/student.json",
    log:
        f"{results}/logs/cut_student/{{student}}.log",
    benchmark:
        f"{results}/benchmarks/cut_student/{{student}}.tsv"
    conda:
        "../../environment.yml"
    params:
        values=lambda wildcards: graph.student(wildcards.student),
        scale=scale,
    shell:
        "budgeted-lora stage cut-student --values {params.values:q} --teacher {input.teacher} --out {output.model}"
        " --record {output.record} --scale {params.scale} 2>&1 | tee {log}"
