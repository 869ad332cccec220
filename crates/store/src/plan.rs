//! The memory plan: how a budget is divided, and the floor below which it is refused.
//!
//! The plan is a pure function of sizes. The budget is a hard ceiling: everything the process holds is in it.

mod machine;

use std::fmt;

use files::{Error, Result};

pub use machine::{
    MachineMemory, MemoryPressure, machine_memory, machine_memory_at, memory_pressure, memory_pressure_at,
    rss_bytes, rss_peak_bytes,
};

/// What must fit, all in bytes or counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlanInput {
    /// The ceiling; `None` takes what the machine can spare, [`default_budget_bytes`].
    pub budget_bytes: Option<u64>,
    /// Memory of the machine now, only used without a budget.
    pub available_bytes: u64,
    /// Weights that every token needs.
    pub resident_bytes: u64,
    /// KV cache and recurrent state that have their place at any time.
    pub state_bytes: u64,
    /// What more of them would take at most, and may take of the expert slots.
    pub state_more_bytes: u64,
    /// What of that there must be.
    pub state_more_bytes_min: u64,
    /// Activations and other working memory of a step.
    pub scratch_bytes: u64,
    /// What a long prompt takes besides, of the expert slots and while it is computed; a quarter of them is left, at most 512 MiB.
    pub lent_bytes: u64,
    /// Code, tokenizer, tables, stacks, loading buffers.
    pub overhead_bytes: u64,
    /// One expert slot.
    pub slot_bytes: u64,
    /// Experts of the whole model; 0 for a dense model. More slots than that are useless.
    pub total_experts: u64,
    /// Fewest slots that are worth running with, at least 1 when there are experts.
    pub min_slots: u64,
}

/// How the memory is divided. Displays as a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The ceiling.
    pub budget_bytes: u64,
    /// As in [`PlanInput`].
    pub resident_bytes: u64,
    /// As in [`PlanInput`].
    pub state_bytes: u64,
    /// As in [`PlanInput`], but no more of it than leaves [`Self::slots_min`] slots.
    pub state_more_bytes: u64,
    /// As in [`PlanInput`].
    pub scratch_bytes: u64,
    /// As in [`PlanInput`].
    pub lent_bytes: u64,
    /// As in [`PlanInput`].
    pub overhead_bytes: u64,
    /// One expert slot.
    pub slot_bytes: u64,
    /// Expert slots.
    pub slots: u64,
    /// Those that are left when states have taken all that they may.
    pub slots_min: u64,
    /// All slots together.
    pub slot_pool_bytes: u64,
    /// Experts of the whole model.
    pub total_experts: u64,
    /// The sum of the parts with all that states may take, at most the budget.
    pub total_bytes: u64,
}

/// States leave this part of the expert slots at least.
const SLOTS_LEFT: u64 = 4;

/// What a process may take of `available_bytes` when nobody said: all but an eighth, which is left (64 MiB to
/// 4 GiB) to other programs and to the page cache.
pub fn default_budget_bytes(available_bytes: u64) -> u64 {
    available_bytes.saturating_sub((available_bytes / 8).clamp(64 << 20, 4 << 30))
}

/// Divides the budget: fixed parts first, as many expert slots as the rest allows.
///
/// # Errors
/// [`files::ErrorKind::Memory`] when the budget is below the floor (the fixed parts and `min_slots`); the message
/// says the floor, its parts, and what would help.
pub fn plan(input: &PlanInput) -> Result<Plan> {
    let PlanInput {
        resident_bytes, state_bytes, scratch_bytes, lent_bytes, overhead_bytes, slot_bytes, ..
    } = *input;
    let budget_bytes = input.budget_bytes.unwrap_or_else(|| default_budget_bytes(input.available_bytes));
    let min_slots = input.min_slots.max(1).min(input.total_experts);
    let fixed = [resident_bytes, state_bytes, scratch_bytes, overhead_bytes]
        .iter()
        .try_fold(0u64, |sum, bytes| sum.checked_add(*bytes));
    let least = input.state_more_bytes_min;
    let all = fixed.map_or(0, |fixed| budget_bytes.saturating_sub(fixed));
    let slots = all.checked_div(slot_bytes).unwrap_or(0).min(input.total_experts);
    let lent_min = match lent_bytes {
        0 => Some(0),
        lent => slots_beside_prompt(slots, slot_bytes, min_slots)
            .checked_mul(slot_bytes)
            .and_then(|slots| slots.checked_add(lent)),
    };
    // Of expert slots, and what is lent of them.
    let beside = min_slots.checked_mul(slot_bytes).zip(lent_min).map(|(slots, lent)| slots.max(lent));
    let floor = fixed.and_then(|f| f.checked_add(least)?.checked_add(beside?));
    let (Some(fixed), Some(floor), Some(lent_min)) = (fixed, floor, lent_min) else {
        return Err(Error::memory("the memory plan exceeds 64-bit sizes"));
    };
    if floor > budget_bytes {
        return Err(below_floor(input, budget_bytes, min_slots, floor));
    }
    let slot_pool_bytes = slots * slot_bytes;
    let slots_left = slots.div_ceil(SLOTS_LEFT).max(min_slots);
    let left = (slots_left * slot_bytes).max(lent_min).min(budget_bytes - fixed);
    let state_more_bytes = input.state_more_bytes.min(budget_bytes - fixed - left).max(least);
    Ok(Plan {
        budget_bytes,
        resident_bytes,
        state_bytes,
        state_more_bytes,
        scratch_bytes,
        lent_bytes,
        overhead_bytes,
        slot_bytes,
        slots,
        slots_min: slots_beside(budget_bytes - fixed, state_more_bytes, slot_bytes, slots),
        slot_pool_bytes,
        total_experts: input.total_experts,
        total_bytes: fixed + (slot_pool_bytes.saturating_add(state_more_bytes)).min(budget_bytes - fixed),
    })
}

/// Of `slots`, those that a long prompt leaves when it borrows their memory: a quarter, at most 512 MiB, which keep the drive
/// busy while others are multiplied. More would only be a cache, and a prompt wants each expert once.
fn slots_beside_prompt(slots: u64, slot_bytes: u64, min_slots: u64) -> u64 {
    (slots / SLOTS_LEFT).min((512 << 20) / slot_bytes.max(1)).max(min_slots)
}

/// Of `slots`, those that fit into `bytes` beside `more_bytes` of others.
fn slots_beside(bytes: u64, more_bytes: u64, slot_bytes: u64, slots: u64) -> u64 {
    bytes.saturating_sub(more_bytes).checked_div(slot_bytes).unwrap_or(0).min(slots)
}

impl Plan {
    /// Expert slots beside `more_bytes`: of states, which have at most [`Self::state_more_bytes`], and of what is lent.
    pub fn slots_beside(&self, more_bytes: u64) -> u64 {
        let fixed = self.resident_bytes + self.state_bytes + self.scratch_bytes + self.overhead_bytes;
        slots_beside(self.budget_bytes - fixed, more_bytes, self.slot_bytes, self.slots)
    }
}

fn below_floor(input: &PlanInput, budget_bytes: u64, min_slots: u64, floor: u64) -> Error {
    let source = if input.budget_bytes.is_some() { "budget" } else { "memory this machine can spare" };
    let experts = match min_slots {
        0 => String::new(),
        n => format!(", {n} expert slots {}", Bytes(n * input.slot_bytes)),
    };
    let state_bytes = input.state_bytes + input.state_more_bytes_min;
    let state_helps = state_bytes > input.scratch_bytes && state_bytes > input.resident_bytes / 4;
    let shorter = if state_helps { ", or a shorter context" } else { "" };
    Error::memory(format!(
        "the {source} of {} is below the floor of {}: resident weights {}, state {}, scratch {}, overhead {}{experts}; \
         give at least {}{shorter}",
        Bytes(budget_bytes),
        Bytes(floor),
        Bytes(input.resident_bytes),
        Bytes(state_bytes),
        Bytes(input.scratch_bytes),
        Bytes(input.overhead_bytes),
        MebibytesUp(floor),
    ))
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = [
            ("resident weights", self.resident_bytes),
            ("state", self.state_bytes),
            ("scratch", self.scratch_bytes),
            ("overhead", self.overhead_bytes),
        ];
        for (name, bytes) in rows {
            write!(f, "{name:<17}{:>11}", Bytes(bytes).to_string())?;
            match self.lent_bytes {
                lent if lent > 0 && name == "scratch" => {
                    writeln!(f, "   {} more of the slots for a long prompt", Bytes(lent))?;
                }
                _ => writeln!(f)?,
            }
        }
        if self.total_experts > 0 {
            let share = 100.0 * self.slots as f64 / self.total_experts as f64;
            let pool = Bytes(self.slot_pool_bytes).to_string();
            let left = match self.slots_min {
                min if min < self.slots => {
                    format!("; {min} when states need {} more", Bytes(self.state_more_bytes))
                }
                _ => String::new(),
            };
            writeln!(
                f,
                "{:<17}{pool:>11}   {} slots of {}, {share:.0} % of {} experts{left}",
                "expert slots",
                self.slots,
                Bytes(self.slot_bytes),
                self.total_experts
            )?;
        }
        let (total, budget) = (Bytes(self.total_bytes).to_string(), Bytes(self.budget_bytes));
        write!(f, "{:<17}{total:>11}   of {budget}", "total")
    }
}

/// A size for people, in binary units.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let unit = (self.0.max(1).ilog2() / 10) as usize;
        let value = self.0 as f64 / (1u64 << (10 * unit)) as f64;
        if unit == 0 { write!(f, "{} B", self.0) } else { write!(f, "{value:.2} {}", units[unit]) }
    }
}

/// A size in the notation of the command line, never less than it is.
struct MebibytesUp(u64);

impl fmt::Display for MebibytesUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}MiB", self.0.div_ceil(1 << 20))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn input(budget_bytes: u64) -> PlanInput {
        PlanInput {
            budget_bytes: Some(budget_bytes),
            available_bytes: 0,
            resident_bytes: 5 << 30,
            state_bytes: 1 << 30,
            state_more_bytes: 0,
            state_more_bytes_min: 0,
            scratch_bytes: 300 << 20,
            lent_bytes: 0,
            overhead_bytes: 200 << 20,
            slot_bytes: 7 << 20,
            total_experts: 60 * 512,
            min_slots: 16,
        }
    }

    #[test]
    fn the_floor_is_exact_and_the_message_says_what_to_give() {
        let floor = (6 << 30) + (500 << 20) + 16 * (7 << 20);
        assert_eq!(plan(&input(floor)).unwrap().slots, 16);
        let error = plan(&input(floor - 1)).unwrap_err();
        assert_eq!(error.kind(), files::ErrorKind::Memory);
        for said in
            ["floor of 6.60 GiB", "resident weights 5.00 GiB", "16 expert slots 112.00 MiB", "6756MiB"]
        {
            assert!(error.message().contains(said), "{said:?} is not in: {error}");
        }
        assert!(plan(&input(6756 << 20)).is_ok());
    }

    #[test]
    fn states_take_slots_down_to_a_part() {
        let slots = 1000;
        let floor = (6 << 30) + (500 << 20) + slots * (7 << 20);
        let some = plan(&PlanInput { state_more_bytes: 70 << 20, ..input(floor) }).unwrap();
        assert_eq!((some.slots, some.slots_min, some.state_more_bytes), (1000, 990, 70 << 20));
        assert_eq!(
            [some.slots_beside(0), some.slots_beside(1), some.slots_beside(70 << 20)],
            [1000, 999, 990]
        );
        assert!(some.to_string().contains("990 when states need 70.00 MiB more"), "{some}");
        let much = plan(&PlanInput { state_more_bytes: u64::MAX, ..input(floor) }).unwrap();
        assert_eq!((much.slots_min, much.state_more_bytes), (250, 750 * (7 << 20)));
        // What there must be of them goes before all slots but the fewest.
        let whole = PlanInput { state_more_bytes: 990 * (7 << 20), ..input(floor) };
        let whole = PlanInput { state_more_bytes_min: 980 * (7 << 20), ..whole };
        assert_eq!(plan(&whole).unwrap().slots_min, 20);
        let error = plan(&PlanInput { state_more_bytes_min: 985 * (7 << 20), ..whole }).unwrap_err();
        assert!(error.message().contains("state 7.73 GiB"), "{error}");
        // What no slot would use is theirs first.
        let few = plan(&PlanInput { total_experts: 20, state_more_bytes: 1 << 30, ..input(floor) }).unwrap();
        assert_eq!((few.slots, few.slots_min, few.state_more_bytes), (20, 20, 1 << 30));
    }

    #[test]
    fn a_long_prompt_borrows_of_the_slots_and_leaves_some() {
        let slots = 1000;
        let budget = (6 << 30) + (500 << 20) + slots * (7 << 20);
        let lends = PlanInput { lent_bytes: 700 << 20, ..input(budget) };
        let some = plan(&lends).unwrap();
        assert_eq!((some.slots, some.slots_beside(some.lent_bytes)), (1000, 900));
        assert!(
            some.to_string().contains("300.00 MiB   700.00 MiB more of the slots for a long prompt"),
            "{some}"
        );
        // States leave what it takes.
        let states =
            plan(&PlanInput { state_more_bytes: u64::MAX, lent_bytes: 6300 << 20, ..lends }).unwrap();
        assert_eq!(states.state_more_bytes, 189 << 20);
        assert_eq!(states.slots_beside(states.state_more_bytes + states.lent_bytes), 73, "512 MiB");
        let error = plan(&PlanInput { lent_bytes: 6490 << 20, ..lends }).unwrap_err();
        assert_eq!(error.kind(), files::ErrorKind::Memory);
    }

    #[test]
    fn without_a_budget_the_machine_is_the_budget_less_headroom() {
        let machine = PlanInput { budget_bytes: None, available_bytes: 24 << 30, ..input(0) };
        assert_eq!(plan(&machine).unwrap().budget_bytes, 21 << 30);
        assert_eq!(default_budget_bytes(100 << 30), 96 << 30);
        assert_eq!(default_budget_bytes(10 << 20), 0);
        let error = plan(&PlanInput { available_bytes: 2 << 30, ..machine }).unwrap_err();
        assert!(error.message().contains("this machine can spare"), "{error}");
    }

    #[test]
    fn dense_models_need_no_slots() {
        let dense = PlanInput { total_experts: 0, slot_bytes: 0, ..input(7 << 30) };
        let plan = plan(&dense).unwrap();
        assert_eq!((plan.slots, plan.slot_pool_bytes), (0, 0));
        assert!(!plan.to_string().contains("expert slots"));
    }

    #[test]
    fn the_table_shows_every_part() {
        let table = plan(&input(12 << 30)).unwrap().to_string();
        let want = "resident weights    5.00 GiB\nstate               1.00 GiB\nscratch           300.00 MiB\n\
                    overhead          200.00 MiB\nexpert slots        5.51 GiB   806 slots of 7.00 MiB, 3 % of 30720 experts\n\
                    total              12.00 GiB   of 12.00 GiB";
        assert_eq!(table, want);
    }

    proptest! {
        #[test]
        fn never_above_the_budget_and_never_a_useless_slot(
            budget: u64, resident: u64, state in 0u64..1 << 40, more in 0u64..1 << 40, slot: u64,
            experts in 0u64..1 << 17, min in 0u64..64, lent in 0u64..1 << 32
        ) {
            let input = PlanInput {
                budget_bytes: Some(budget), available_bytes: 0, resident_bytes: resident, state_bytes: state,
                state_more_bytes: more, state_more_bytes_min: more / 8, scratch_bytes: 1 << 20, overhead_bytes: 1 << 20,
                lent_bytes: lent, slot_bytes: slot, total_experts: experts,
                min_slots: min,
            };
            if let Ok(plan) = plan(&input) {
                prop_assert!(plan.total_bytes <= budget && plan.slots <= experts);
                prop_assert!(plan.slots >= min.max(1).min(experts) || slot == 0);
                let fixed = resident + state + (2 << 20);
                let another = (fixed + plan.slot_pool_bytes).checked_add(slot).is_none_or(|b| b > budget);
                prop_assert!(slot == 0 || plan.slots == experts || another);
                for more in [0, plan.state_more_bytes / 2, plan.state_more_bytes] {
                    let slots = plan.slots_beside(more);
                    prop_assert!((plan.slots_min..=plan.slots).contains(&slots) && slots >= min.min(experts) || slot == 0);
                    prop_assert!(fixed + more + slots * slot <= plan.total_bytes);
                    let slots = plan.slots_beside(more + lent);
                    prop_assert!(slot == 0 || lent == 0 || slots >= min.min(experts).min(plan.slots));
                    prop_assert!(slot == 0 || fixed + more + lent + slots * slot <= budget);
                }
            }
        }
    }
}
