//! What the demo claims, and whether it held.

use std::collections::BTreeMap;

use crate::screen;

/// One claim.
struct Claim {
    name: &'static str,
    text: String,
    held: bool,
}

/// All claims, in the order they were made.
#[derive(Default)]
pub struct Claims {
    claims: Vec<Claim>,
}

impl Claims {
    /// Adds a claim: a stable name for the summary, whether it held, and a sentence with figures.
    pub fn make(&mut self, name: &'static str, held: bool, text: impl Into<String>) {
        self.claims.push(Claim { name, text: text.into(), held });
    }

    /// Whether there are claims and all of them held.
    pub fn all_held(&self) -> bool {
        !self.claims.is_empty() && self.claims.iter().all(|claim| claim.held)
    }

    /// The claims by name, for the summary.
    pub fn by_name(&self) -> BTreeMap<&'static str, bool> {
        self.claims.iter().map(|claim| (claim.name, claim.held)).collect()
    }

    /// The number of claims that held, and of all claims.
    pub fn count(&self) -> (usize, usize) {
        (self.claims.iter().filter(|claim| claim.held).count(), self.claims.len())
    }

    /// Prints one line per claim.
    pub fn print(&self) {
        for claim in &self.claims {
            let text = if claim.held { claim.text.clone() } else { screen::styled(screen::BAD, &claim.text) };
            screen::note(format!("{} {text}", screen::mark(claim.held)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_claim_that_fails_fails_all_and_none_is_no_success() {
        let mut claims = Claims::default();
        assert!(!claims.all_held());
        claims.make("a", true, "a");
        assert!(claims.all_held());
        claims.make("b", false, "b");
        assert!(!claims.all_held());
        assert_eq!(claims.count(), (1, 2));
        assert!(!claims.by_name()["b"]);
    }
}
