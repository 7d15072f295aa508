//! Token usage by class, the price of each class, and the cost that follows.

use serde::{Deserialize, Serialize};

use super::money::PicoUsd;

/// Tokens of one attempt, in disjoint classes that are priced apart. A count that is not known is `None`, never 0.
///
/// OpenAI's `prompt_tokens` includes the cached ones; here `input` is what remains when `cached_input` and
/// `cache_write` are taken out. `output` includes `reasoning`, which is told for information.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TokenUsage {
    pub input: Option<u64>,
    pub cached_input: Option<u64>,
    pub cache_write: Option<u64>,
    pub output: Option<u64>,
    pub reasoning: Option<u64>,
}

/// What one token of each class costs. A class without a price of its own costs what `input` costs (cached and written
/// input are input; reasoning is output); input and output always have one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Price {
    pub input: PicoUsd,
    pub cached_input: Option<PicoUsd>,
    pub cache_write: Option<PicoUsd>,
    pub output: PicoUsd,
    pub reasoning: Option<PicoUsd>,
}

impl TokenUsage {
    /// A provider that never got the request used nothing: known zeros.
    pub const NOTHING: Self =
        Self { input: Some(0), cached_input: Some(0), cache_write: Some(0), output: Some(0), reasoning: Some(0) };

    /// All input tokens, the cached ones included; `None` when the uncached count is unknown.
    pub fn total_input(&self) -> Option<u64> {
        let cached = self.cached_input.unwrap_or(0).checked_add(self.cache_write.unwrap_or(0))?;
        self.input?.checked_add(cached)
    }
}

impl Price {
    /// What an input token costs at the most, in whichever class it falls.
    pub fn dearest_input(&self) -> PicoUsd {
        [self.cached_input, self.cache_write].into_iter().flatten().fold(self.input, PicoUsd::max)
    }

    /// What an output token costs at the most.
    pub fn dearest_output(&self) -> PicoUsd {
        self.output.max(self.reasoning.unwrap_or(PicoUsd::ZERO))
    }

    /// So many tokens at their dearest. `None`: it does not fit an amount.
    pub fn worst_cost(&self, input_tokens: u64, output_tokens: u64) -> Option<PicoUsd> {
        let (input, output) = (self.dearest_input(), self.dearest_output());
        let sum = input.checked_mul(input_tokens)?.checked_add(output.checked_mul(output_tokens)?)?;
        sum.to_long().map(|_| sum)
    }

    /// Exact cost of `usage`. `None` when input or output is unknown (unknown is never zero) or does not fit.
    pub fn cost(&self, usage: &TokenUsage) -> Option<PicoUsd> {
        let output = usage.output?;
        // Told for information by some: more of it than of output cannot be.
        let reasoning = self.reasoning.and(usage.reasoning).unwrap_or(0).min(output);
        let classes = [
            (usage.input?, self.input),
            (usage.cached_input.unwrap_or(0), self.cached_input.unwrap_or(self.input)),
            (usage.cache_write.unwrap_or(0), self.cache_write.unwrap_or(self.input)),
            (output - reasoning, self.output),
            (reasoning, self.reasoning.unwrap_or(self.output)),
        ];
        classes.iter().try_fold(PicoUsd::ZERO, |sum, (tokens, price)| sum.checked_add(price.checked_mul(*tokens)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRICE: Price = Price {
        input: PicoUsd::new(3_000_000),
        cached_input: Some(PicoUsd::new(300_000)),
        cache_write: Some(PicoUsd::new(3_750_000)),
        output: PicoUsd::new(15_000_000),
        reasoning: None,
    };

    #[test]
    fn classes_are_priced_apart() {
        let usage = TokenUsage {
            input: Some(100),
            cached_input: Some(10),
            cache_write: Some(2),
            output: Some(7),
            reasoning: Some(5),
        };
        assert_eq!(PRICE.cost(&usage), Some(PicoUsd::new(300_000_000 + 3_000_000 + 7_500_000 + 105_000_000)));
        assert_eq!(usage.total_input(), Some(112));
        let reasoned = Price { reasoning: Some(PicoUsd::new(20_000_000)), ..PRICE };
        assert_eq!(reasoned.cost(&usage), Some(PicoUsd::new(310_500_000 + 30_000_000 + 100_000_000)));
        let more_than_output = TokenUsage { reasoning: Some(9), ..usage };
        assert_eq!(reasoned.cost(&more_than_output), Some(PicoUsd::new(310_500_000 + 140_000_000)));
    }

    #[test]
    fn unknown_is_never_zero() {
        let unknown = TokenUsage { input: Some(1), ..TokenUsage::default() };
        assert_eq!(PRICE.cost(&unknown), None);
        assert_eq!(TokenUsage::default().total_input(), None);
    }

    #[test]
    fn cached_input_without_its_own_price_costs_what_input_costs() {
        let price = Price { cached_input: None, cache_write: None, ..PRICE };
        let usage = TokenUsage { input: Some(1), cached_input: Some(9), output: Some(0), ..TokenUsage::default() };
        assert_eq!(price.cost(&usage), Some(PicoUsd::new(30_000_000)));
    }

    #[test]
    fn a_cost_that_does_not_fit_is_unknown() {
        let price = Price { input: PicoUsd::new(i128::MAX), ..PRICE };
        let usage = TokenUsage { input: Some(2), output: Some(0), ..TokenUsage::default() };
        assert_eq!(price.cost(&usage), None);
    }
}
