//! Money: integer pico-dollars (10^-12 USD), from the price to the posting to the row.
//!
//! A price of 1 USD per million tokens is exactly 1,000,000 pico-dollars per token, so tokens times price is exact and
//! nothing is ever rounded. Records carry an Avro `long` (9.2 million dollars in one posting); sums are 128 bits wide.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Pico-dollars in a dollar.
pub const PICO_PER_USD: i128 = 1_000_000_000_000;
/// Decimal places of a dollar amount.
const PLACES: usize = 12;

/// An amount of money in pico-dollars; negative amounts are credits. Aligned as all other numbers are, since owners keep a
/// few of them for every organization that ever asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(Rust, packed(8))]
pub struct PicoUsd(i128);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{text:?} is not a dollar amount; write it like 0.15")]
    Format { text: String },
    #[error("{text:?} has more than {PLACES} decimal places; a pico-dollar is the smallest unit")]
    TooFine { text: String },
    #[error("the amount does not fit: {text}")]
    Overflow { text: String },
    #[error("a price of {text:?} USD per million tokens has more than 6 decimal places; the smallest is 0.000001")]
    PriceTooFine { text: String },
}

impl PicoUsd {
    pub const ZERO: Self = Self(0);

    pub const fn new(pico: i128) -> Self {
        Self(pico)
    }

    pub const fn get(self) -> i128 {
        self.0
    }

    /// The amount as records carry it, or `None` when it does not fit an Avro `long`.
    pub fn to_long(self) -> Option<i64> {
        i64::try_from(self.0).ok()
    }

    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    /// Of sums that a total fold may not fail on; 128 bits are never reached.
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// `tokens` times this price per token.
    pub fn checked_mul(self, tokens: u64) -> Option<Self> {
        self.0.checked_mul(i128::from(tokens)).map(Self)
    }

    /// A price given in dollars per million tokens, as the price of one token.
    pub fn per_token_from_usd_per_million(text: &str) -> Result<Self, Error> {
        let million = Self::from_str(text)?;
        if million.0 % 1_000_000 != 0 {
            return Err(Error::PriceTooFine { text: text.to_owned() });
        }
        Ok(Self(million.0 / 1_000_000))
    }
}

/// Dollars with twelve decimal places at the most; trailing zeros are left out, two places are kept.
impl fmt::Display for PicoUsd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let amount = self.0.unsigned_abs();
        let (whole, fraction) = (amount / PICO_PER_USD as u128, amount % PICO_PER_USD as u128);
        let digits = format!("{fraction:012}");
        let kept = digits.trim_end_matches('0').len().max(2);
        write!(f, "{sign}{whole}.{}", &digits[..kept])
    }
}

impl FromStr for PicoUsd {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let format = || Error::Format { text: text.to_owned() };
        let (negative, digits) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
        let only_digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if !only_digits(whole) || !only_digits(fraction) {
            return Err(format());
        }
        let fraction = fraction.trim_end_matches('0');
        if fraction.len() > PLACES {
            return Err(Error::TooFine { text: text.to_owned() });
        }
        let overflow = || Error::Overflow { text: text.to_owned() };
        let whole: i128 = whole.parse().map_err(|_| overflow())?;
        let fraction: i128 = format!("{fraction:0<12}").parse().map_err(|_| format())?;
        let amount = whole.checked_mul(PICO_PER_USD).and_then(|w| w.checked_add(fraction)).ok_or_else(overflow)?;
        Ok(Self(if negative { -amount } else { amount }))
    }
}

impl std::iter::Sum for PicoUsd {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        Self(amounts.map(|a| a.0).sum())
    }
}

impl Serialize for PicoUsd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let long = self.to_long();
        let long = long.ok_or_else(|| serde::ser::Error::custom(format!("{self} USD does not fit one record")))?;
        serializer.serialize_i64(long)
    }
}

impl<'de> Deserialize<'de> for PicoUsd {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        i64::deserialize(deserializer).map(|pico| Self(i128::from(pico)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_price_per_million_is_exact_per_token() {
        for (text, pico) in [("0.15", 150_000), ("15", 15_000_000), ("0.000001", 1), ("0.0375", 37_500), ("0", 0)] {
            assert_eq!(PicoUsd::per_token_from_usd_per_million(text), Ok(PicoUsd::new(pico)), "{text}");
        }
        assert!(matches!(PicoUsd::per_token_from_usd_per_million("0.0000001"), Err(Error::PriceTooFine { .. })));
    }

    #[test]
    fn what_is_not_an_amount_is_refused() {
        for text in ["", "-", ".", "1.", ".5", "1,5", "1e3", "0x1", "1 ", "--1", "+1", "NaN"] {
            assert!(matches!(text.parse::<PicoUsd>(), Err(Error::Format { .. })), "{text:?}");
        }
        assert!(matches!("0.0000000000001".parse::<PicoUsd>(), Err(Error::TooFine { .. })));
        assert!(matches!("9".repeat(39).parse::<PicoUsd>(), Err(Error::Overflow { .. })));
    }

    proptest! {
        #[test]
        fn printing_and_parsing_are_inverse(pico in any::<i64>()) {
            let amount = PicoUsd::new(i128::from(pico));
            prop_assert_eq!(amount.to_string().parse::<PicoUsd>(), Ok(amount));
        }
    }
}
