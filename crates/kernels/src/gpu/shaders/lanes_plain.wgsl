// The LANES threads that share a sum add up through shared memory.

fn position(t: u32) -> u32 {
    return t;
}

fn lanes_sum(value: f32, position: u32) -> f32 {
    return lanes_sum4(vec4<f32>(value, 0.0, 0.0, 0.0), position).x;
}

fn lanes_sum4(value: vec4<f32>, position: u32) -> vec4<f32> {
    workgroup_values[position] = value;
    workgroupBarrier();
    for (var step = LANES / 2u; step > 0u; step >>= 1u) {
        if position % LANES < step {
            workgroup_values[position] += workgroup_values[position + step];
        }
        workgroupBarrier();
    }
    let sum = workgroup_values[position / LANES * LANES];
    workgroupBarrier();
    return sum;
}

fn lanes_max4(value: vec4<f32>, position: u32) -> vec4<f32> {
    workgroup_values[position] = value;
    workgroupBarrier();
    var most = value;
    for (var i = 0u; i < LANES; i++) {
        most = max(most, workgroup_values[position / LANES * LANES + i]);
    }
    workgroupBarrier();
    return most;
}

var<workgroup> workgroup_words: array<u32, THREADS>;

// Of eight neighbours.
fn eights_max(value: u32, position: u32) -> u32 {
    workgroup_words[position] = value;
    workgroupBarrier();
    var most = value;
    for (var i = 0u; i < 8u; i++) {
        most = max(most, workgroup_words[position / 8u * 8u + i]);
    }
    workgroupBarrier();
    return most;
}

// Of four neighbours.
fn fours_sum(value: i32, position: u32) -> i32 {
    workgroup_words[position] = bitcast<u32>(value);
    workgroupBarrier();
    var sum = 0;
    for (var i = 0u; i < 4u; i++) {
        sum += bitcast<i32>(workgroup_words[position / 4u * 4u + i]);
    }
    workgroupBarrier();
    return sum;
}
