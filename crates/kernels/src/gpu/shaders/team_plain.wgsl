// Reductions over the workgroup (its TEAM threads), through shared memory alone.

var<workgroup> team_values: array<vec4<f32>, TEAM>;

fn team_sum4(value: vec4<f32>, t: u32) -> vec4<f32> {
    team_values[t] = value;
    workgroupBarrier();
    for (var step = TEAM / 2u; step > 0u; step >>= 1u) {
        if t < step {
            team_values[t] += team_values[t + step];
        }
        workgroupBarrier();
    }
    let sum = team_values[0];
    workgroupBarrier();
    return sum;
}

fn team_sum(value: f32, t: u32) -> f32 {
    return team_sum4(vec4<f32>(value), t).x;
}

fn team_max(value: f32, t: u32) -> f32 {
    team_values[t].x = value;
    workgroupBarrier();
    for (var step = TEAM / 2u; step > 0u; step >>= 1u) {
        if t < step {
            team_values[t].x = max(team_values[t].x, team_values[t + step].x);
        }
        workgroupBarrier();
    }
    let most = team_values[0].x;
    workgroupBarrier();
    return most;
}
