// Reductions over the workgroup (its THREADS threads): within subgroups of any size, then over their results.

var<workgroup> workgroup_values: array<vec4<f32>, THREADS>;
// Number of this subgroup, lane in it, subgroups in the workgroup, lanes of a subgroup.
var<private> subgroup: vec4<u32>;

fn workgroup_sum4(value: vec4<f32>, t: u32) -> vec4<f32> {
    var sum = subgroupAdd(value);
    if subgroup.z > 1u {
        if subgroup.y == 0u {
            workgroup_values[subgroup.x] = sum;
        }
        workgroupBarrier();
        sum = workgroup_values[0];
        for (var i = 1u; i < subgroup.z; i++) {
            sum += workgroup_values[i];
        }
        workgroupBarrier();
    }
    return sum;
}

fn workgroup_sum(value: f32, t: u32) -> f32 {
    var sum = subgroupAdd(value);
    if subgroup.z > 1u {
        if subgroup.y == 0u {
            workgroup_values[subgroup.x].x = sum;
        }
        workgroupBarrier();
        sum = workgroup_values[0].x;
        for (var i = 1u; i < subgroup.z; i++) {
            sum += workgroup_values[i].x;
        }
        workgroupBarrier();
    }
    return sum;
}

fn workgroup_max(value: f32, t: u32) -> f32 {
    var most = subgroupMax(value);
    if subgroup.z > 1u {
        if subgroup.y == 0u {
            workgroup_values[subgroup.x].x = most;
        }
        workgroupBarrier();
        most = workgroup_values[0].x;
        for (var i = 1u; i < subgroup.z; i++) {
            most = max(most, workgroup_values[i].x);
        }
        workgroupBarrier();
    }
    return most;
}
