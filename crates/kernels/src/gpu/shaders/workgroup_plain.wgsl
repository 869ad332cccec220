// Reductions over the workgroup (its THREADS threads), through shared memory alone.

var<workgroup> workgroup_values: array<vec4<f32>, THREADS>;

fn workgroup_sum4(value: vec4<f32>, t: u32) -> vec4<f32> {
    workgroup_values[t] = value;
    workgroupBarrier();
    for (var step = THREADS / 2u; step > 0u; step >>= 1u) {
        if t < step {
            workgroup_values[t] += workgroup_values[t + step];
        }
        workgroupBarrier();
    }
    let sum = workgroup_values[0];
    workgroupBarrier();
    return sum;
}

fn workgroup_sum(value: f32, t: u32) -> f32 {
    return workgroup_sum4(vec4<f32>(value), t).x;
}

fn workgroup_max(value: f32, t: u32) -> f32 {
    workgroup_values[t].x = value;
    workgroupBarrier();
    for (var step = THREADS / 2u; step > 0u; step >>= 1u) {
        if t < step {
            workgroup_values[t].x = max(workgroup_values[t].x, workgroup_values[t + step].x);
        }
        workgroupBarrier();
    }
    let most = workgroup_values[0].x;
    workgroupBarrier();
    return most;
}
