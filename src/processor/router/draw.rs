//! Draws by weights: the same for the same request, so that they can be made again.

use crate::domain::{ModelName, RequestId};
use crate::records::policy::Policy;

/// A source of numbers that a text decides. FNV-1a (Fowler, Noll, Vo) over the text, then SplitMix64 (Steele, Lea, Flood 2014)
/// for each further number.
pub struct Draw(u64);

impl Draw {
    pub fn of(text: &str, salt: &str) -> Self {
        let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        Self([text.as_bytes(), &[0], salt.as_bytes()].concat().into_iter().fold(0xcbf2_9ce4_8422_2325, hash))
    }

    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The n-th number from here.
    pub fn nth(mut self, n: u32) -> u64 {
        self.0 = self.0.wrapping_add(u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        self.number()
    }

    /// All of them, each place drawn by the weights of those that are left; those without weight come last, as they stand.
    pub fn order<T>(&mut self, mut left: Vec<(T, u64)>) -> Vec<T> {
        let mut ordered = Vec::with_capacity(left.len());
        loop {
            let total = left.iter().fold(0u64, |sum, (_, weight)| sum.saturating_add(*weight));
            if total == 0 {
                ordered.extend(left.into_iter().map(|(item, _)| item));
                return ordered;
            }
            let mut at = self.number() % total;
            let found = left.iter().position(|(_, weight)| {
                let is_here = at < *weight;
                at = at.saturating_sub(*weight);
                is_here
            });
            ordered.push(left.remove(found.unwrap_or(0)).0);
        }
    }
}

/// The candidates of a policy's tier, in the order in which this request tries them.
pub fn candidates<'a>(policy: &'a Policy, tier: u8, request: &RequestId) -> Vec<&'a ModelName> {
    let Some(of) = policy.tiers.iter().find(|of| of.tier == tier) else { return Vec::new() };
    match of.weights.len() == of.candidates.len() && !of.weights.is_empty() {
        false => of.candidates.iter().collect(),
        true => {
            let weighted = of.candidates.iter().zip(of.weights.iter().copied()).collect();
            Draw::of(request.as_str(), "tier").order(weighted)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draw_is_the_same_for_the_same_text_and_its_shares_are_the_weights() {
        let order = |id: u32| Draw::of(&format!("req-{id}"), "x").order(vec![('a', 70), ('b', 30), ('c', 0)]);
        assert!((0..100).all(|id| order(id) == order(id)));
        let orders: Vec<Vec<char>> = (0..10_000).map(order).collect();
        let first = orders.iter().filter(|order| order[0] == 'a').count();
        assert!((6_800..7_200).contains(&first), "{first}");
        assert!(orders.iter().all(|order| order[2] == 'c' && order.len() == 3));
    }

    #[test]
    fn weights_that_overflow_are_no_problem() {
        let order = Draw::of("a", "b").order(vec![(1, u64::MAX), (2, u64::MAX)]);
        assert_eq!(order.len(), 2);
    }
}
