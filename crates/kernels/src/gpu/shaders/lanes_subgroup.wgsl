// The LANES threads that share a sum are neighbours, within one subgroup or in several whole ones.

fn position(t: u32) -> u32 {
    return subgroup.x * subgroup.w + subgroup.y;
}

// Of LANES that are no more than a subgroup has.
fn lanes_sum(value: f32, position: u32) -> f32 {
    var sum = value;
    for (var step = LANES / 2u; step > 0u; step >>= 1u) {
        sum += subgroupShuffleXor(sum, step);
    }
    return sum;
}

fn lanes_sum4(value: vec4<f32>, position: u32) -> vec4<f32> {
    var sum = value;
    for (var step = min(LANES, subgroup.w) / 2u; step > 0u; step >>= 1u) {
        sum += subgroupShuffleXor(sum, step);
    }
    if LANES > subgroup.w {
        if subgroup.y == 0u {
            workgroup_values[subgroup.x] = sum;
        }
        workgroupBarrier();
        let count = LANES / subgroup.w;
        let first = position / LANES * count;
        sum = workgroup_values[first];
        for (var i = 1u; i < count; i++) {
            sum += workgroup_values[first + i];
        }
        workgroupBarrier();
    }
    return sum;
}

fn lanes_max4(value: vec4<f32>, position: u32) -> vec4<f32> {
    var most = value;
    for (var step = min(LANES, subgroup.w) / 2u; step > 0u; step >>= 1u) {
        most = max(most, subgroupShuffleXor(most, step));
    }
    if LANES > subgroup.w {
        if subgroup.y == 0u {
            workgroup_values[subgroup.x] = most;
        }
        workgroupBarrier();
        let count = LANES / subgroup.w;
        let first = position / LANES * count;
        for (var i = 0u; i < count; i++) {
            most = max(most, workgroup_values[first + i]);
        }
        workgroupBarrier();
    }
    return most;
}

// Of eight neighbours.
fn eights_max(value: u32, position: u32) -> u32 {
    var most = value;
    for (var step = 4u; step > 0u; step >>= 1u) {
        most = max(most, subgroupShuffleXor(most, step));
    }
    return most;
}

// Of four neighbours.
fn fours_sum(value: i32, position: u32) -> i32 {
    let two = value + subgroupShuffleXor(value, 1u);
    return two + subgroupShuffleXor(two, 2u);
}
