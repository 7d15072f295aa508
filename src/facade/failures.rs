//! Who has given wrong keys lately, by address: after some of them further ones are answered with a time to wait, which
//! doubles. A valid key is no matter of this: at the facade it is let in from anywhere, since clients share addresses
//! (NAT, proxies), and a random key of 256 bits is not found by trying.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Wrong keys from one address before it has to wait.
const FREE_MAX: u32 = 10;
/// Without a wrong key for so long after its wait, an address is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);
/// The first wait, and the longest.
const WAIT_MIN: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Most addresses that are remembered; beyond it, those that failed longest ago are forgotten.
const ADDRESSES_MAX: usize = 10_000;

#[derive(Debug, Clone, Copy)]
struct Failed {
    count: u32,
    last: Instant,
}

impl Failed {
    fn wait(self) -> Duration {
        match self.count.checked_sub(FREE_MAX + 1) {
            None => Duration::ZERO,
            Some(more) => WAIT_MIN.saturating_mul(1 << more.min(16)).min(WAIT_MAX),
        }
    }

    fn is_forgotten(self, now: Instant) -> bool {
        now.saturating_duration_since(self.last) > self.wait() + FORGOTTEN_AFTER
    }
}

/// The failures of all addresses.
#[derive(Debug, Default)]
pub struct Failures(HashMap<IpAddr, Failed>);

impl Failures {
    /// A wrong key came from here. How long to wait now, if there is a wait.
    pub fn failed(&mut self, address: IpAddr, now: Instant) -> Option<Duration> {
        let address = network(address);
        if !self.0.contains_key(&address) && self.0.len() >= ADDRESSES_MAX {
            self.make_room(now);
        }
        let failed = self.0.entry(address).or_insert(Failed { count: 0, last: now });
        if failed.is_forgotten(now) {
            failed.count = 0;
        }
        failed.count = failed.count.saturating_add(1);
        failed.last = now;
        Some(failed.wait()).filter(|wait| !wait.is_zero())
    }

    /// How long this address has to wait still.
    pub fn waits(&self, address: IpAddr, now: Instant) -> Option<Duration> {
        let failed = self.0.get(&network(address))?;
        failed.wait().checked_sub(now.saturating_duration_since(failed.last)).filter(|wait| !wait.is_zero())
    }

    fn make_room(&mut self, now: Instant) {
        self.0.retain(|_, failed| !failed.is_forgotten(now));
        if self.0.len() < ADDRESSES_MAX {
            return;
        }
        // Half at once, so that room is not made for every single failure.
        let mut times: Vec<Instant> = self.0.values().map(|failed| failed.last).collect();
        let (_, middle, _) = times.select_nth_unstable(ADDRESSES_MAX / 2);
        let middle = *middle;
        self.0.retain(|_, failed| failed.last > middle);
    }
}

/// One client has a whole /64 of IPv6.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn address(last: u32) -> IpAddr {
        IpAddr::V4(last.into())
    }

    #[test]
    fn the_wait_begins_after_some_failures_and_doubles_to_its_bound() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        for _ in 0..FREE_MAX {
            assert_eq!(failures.failed(address(1), now), None);
        }
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(failures.failed(address(1), now), Some(SECOND * seconds));
        }
        assert_eq!(failures.waits(address(1), now + 59 * SECOND), Some(SECOND));
        assert_eq!(failures.waits(address(1), now + WAIT_MAX), None);
        assert_eq!(failures.waits(address(2), now), None, "others do not wait");
        assert_eq!(failures.failed(address(2), now), None);
    }

    #[test]
    fn an_address_that_was_quiet_is_forgotten() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        for _ in 0..=FREE_MAX {
            failures.failed(address(1), now);
        }
        let later = now + WAIT_MIN + FORGOTTEN_AFTER + SECOND;
        assert_eq!(failures.failed(address(1), later), None);
    }

    #[test]
    fn no_more_addresses_are_remembered_than_the_bound() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        for index in 0..3 * ADDRESSES_MAX as u32 {
            failures.failed(address(index), now + Duration::from_millis(u64::from(index)));
            assert!(failures.0.len() <= ADDRESSES_MAX);
        }
        assert!(failures.0.contains_key(&address(3 * ADDRESSES_MAX as u32 - 1)), "the latest are kept");
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        for host in 0..=u128::from(FREE_MAX) {
            failures.failed(IpAddr::V6(Ipv6Addr::from_bits((0x2001_0db8 << 96) | host)), now);
        }
        assert!(failures.waits("2001:db8::ffff".parse().unwrap(), now).is_some());
        assert!(failures.waits("2001:db8:0:1::1".parse().unwrap(), now).is_none());
    }
}
