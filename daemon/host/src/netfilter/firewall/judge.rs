//! What another program's chain does with a kind of packet, as far as `nft -j`
//! (libnftables-json(5)) tells. An expression that is not understood may match or not; the
//! judgement is then only that the chain may drop.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde_json::Value;

use super::super::read;

/// The deepest nesting of chains that call each other (`NFT_JUMP_STACK_SIZE`).
const DEPTH: usize = 16;
/// kube-proxy's mark on packets that it will masquerade. A packet that one pod sends directly to
/// another never has it.
const KUBE_PROXY_MARK: u64 = 0x4000;

/// A device that a packet arrives or leaves by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Device {
    /// The device of this name.
    Named(String),
    /// Any device whose name begins with this.
    Prefix(String),
    /// An unknown device.
    Unknown,
}

/// A packet that opens a connection.
#[derive(Clone, Debug)]
pub(super) struct Packet {
    pub(super) ipv6: bool,
    pub(super) input: Device,
    /// None if it is for a process of this node.
    pub(super) output: Option<Device>,
    /// A range that holds its source; none if that is not known. The same for the destination.
    pub(super) source: Option<IpNet>,
    pub(super) destination: Option<IpNet>,
    pub(super) protocol: &'static str,
    pub(super) port: Option<u16>,
}

/// What becomes of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// All pass.
    Passes,
    /// The outcome depends on an expression that is not understood.
    MayDrop,
    /// All are dropped.
    Drops,
}

/// Another program's base chain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chain {
    /// `ip`, `ip6` or `inet`.
    pub family: String,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// `forward` or `input`.
    pub hook: String,
}

/// A table as it was listed.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// Base chains, and whether their policy is to drop.
    pub(super) base: Vec<(Chain, bool)>,
    /// The rules of all chains.
    chains: BTreeMap<String, Vec<Rule>>,
}

#[derive(Debug)]
struct Rule {
    expressions: Vec<Value>,
    /// The rule in nft's own syntax: only there is it visible what iptables' extensions match.
    words: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Match {
    Yes,
    No,
    Maybe,
}

impl Match {
    fn of(yes: bool) -> Match {
        if yes { Match::Yes } else { Match::No }
    }

    fn and(self, other: Match) -> Match {
        match (self, other) {
            (Match::No, _) | (_, Match::No) => Match::No,
            (Match::Yes, Match::Yes) => Match::Yes,
            _ => Match::Maybe,
        }
    }

    fn or(self, other: Match) -> Match {
        match (self, other) {
            (Match::Yes, _) | (_, Match::Yes) => Match::Yes,
            (Match::No, Match::No) => Match::No,
            _ => Match::Maybe,
        }
    }

    fn not(self) -> Match {
        match self {
            Match::Yes => Match::No,
            Match::No => Match::Yes,
            Match::Maybe => Match::Maybe,
        }
    }
}

/// The ways in which a walk through a chain may end.
#[derive(Clone, Copy, Default)]
struct Ends {
    accepted: bool,
    dropped: bool,
    /// Back to the calling chain; from a base chain, to its policy.
    returned: bool,
}

impl Ends {
    const ACCEPTED: Ends = Ends { accepted: true, dropped: false, returned: false };
    const DROPPED: Ends = Ends { accepted: false, dropped: true, returned: false };
    const RETURNED: Ends = Ends { accepted: false, dropped: false, returned: true };
    const UNKNOWN: Ends = Ends { accepted: true, dropped: true, returned: true };

    fn add(&mut self, other: Ends) {
        self.accepted |= other.accepted;
        self.dropped |= other.dropped;
        self.returned |= other.returned;
    }
}

impl Table {
    /// Reads `nft -j list table` and, for what that leaves out, `nft -a list table`.
    pub(super) fn read(json: &str, text: &str) -> Table {
        let words: BTreeMap<u64, &str> = text
            .lines()
            .filter_map(|line| line.rsplit_once("# handle "))
            .filter_map(|(words, handle)| Some((handle.trim().parse().ok()?, words)))
            .collect();
        let mut table = Table::default();
        for chain in read::objects(json, "chain") {
            let word = |key: &str| chain[key].as_str().unwrap_or_default().to_owned();
            table.chains.entry(word("name")).or_default();
            if word("type") == "filter" && matches!(word("hook").as_str(), "forward" | "input") {
                let name =
                    Chain { family: word("family"), table: word("table"), name: word("name"), hook: word("hook") };
                table.base.push((name, chain["policy"] == "drop"));
            }
        }
        for rule in read::objects(json, "rule") {
            let chain = rule["chain"].as_str().unwrap_or_default().to_owned();
            let words = rule["handle"].as_u64().and_then(|handle| words.get(&handle)).copied().unwrap_or_default();
            let expressions = rule["expr"].as_array().cloned().unwrap_or_default();
            table.chains.entry(chain).or_default().push(Rule { expressions, words: words.to_owned() });
        }
        table
    }

    /// Whether there is a chain of this name. A name that ends in `*` is a prefix.
    pub(super) fn has(&self, name: &str) -> bool {
        match name.strip_suffix('*') {
            Some(prefix) => self.chains.keys().any(|chain| chain.starts_with(prefix)),
            None => self.chains.contains_key(name),
        }
    }

    /// Whether every rule has a counter, as in tables that iptables made. iptables may refuse to
    /// change other tables.
    pub(super) fn is_counted(&self) -> bool {
        let counts = |rule: &Rule| rule.expressions.iter().filter_map(single).any(|(key, _)| key == "counter");
        self.chains.values().flatten().all(counts)
    }

    /// What a base chain does with a packet.
    pub(super) fn outcome(&self, chain: &str, drops: bool, packet: &Packet) -> Outcome {
        let mut ends = self.walk(chain, packet, 0, &mut BTreeMap::new());
        if ends.returned {
            ends.add(if drops { Ends::DROPPED } else { Ends::ACCEPTED });
        }
        match (ends.dropped, ends.accepted) {
            (true, false) => Outcome::Drops,
            (true, true) => Outcome::MayDrop,
            (false, _) => Outcome::Passes,
        }
    }

    fn walk<'a>(&'a self, name: &'a str, packet: &Packet, depth: usize, known: &mut BTreeMap<&'a str, Ends>) -> Ends {
        if let Some(ends) = known.get(name) {
            return *ends;
        }
        let (Some(rules), true) = (self.chains.get(name), depth <= DEPTH) else { return Ends::UNKNOWN };
        let mut ends = Ends::default();
        for rule in rules {
            for (matches, verdict) in rule.verdicts(packet) {
                let (one, stops) = match verdict {
                    Verdict::Ends(ends) => (ends, true),
                    Verdict::Goto(chain) => (self.walk(chain, packet, depth + 1, known), true),
                    Verdict::Jump(chain) => {
                        let inside = self.walk(chain, packet, depth + 1, known);
                        (Ends { returned: false, ..inside }, !inside.returned)
                    }
                };
                ends.add(one);
                if matches == Match::Yes && stops {
                    known.insert(name, ends);
                    return ends;
                }
            }
        }
        ends.returned = true;
        known.insert(name, ends);
        ends
    }
}

enum Verdict<'a> {
    Ends(Ends),
    Jump(&'a str),
    Goto(&'a str),
}

impl Rule {
    /// The verdicts the rule may reach, in order; empty if it certainly does not match.
    fn verdicts(&self, packet: &Packet) -> Vec<(Match, Verdict<'_>)> {
        let mut matches = Match::Yes;
        for (key, value) in self.expressions.iter().filter_map(single) {
            matches = matches.and(match key {
                "match" => packet.matches(value),
                "xt" if value["type"] == "match" => {
                    extension(value["name"].as_str().unwrap_or_default(), &self.words, packet)
                }
                "limit" | "quota" | "ct count" | "set" | "meter" => Match::Maybe,
                "vmap" => {
                    let entries = value["data"]["set"].as_array().map(Vec::as_slice).unwrap_or_default();
                    // The rule's listing does not have the entries of a named map.
                    if entries.is_empty() {
                        return vec![(Match::Maybe, Verdict::Ends(Ends::UNKNOWN))];
                    }
                    let one = |entry: &'_ Value| packet.equals(&value["key"], &entry[0]).and(matches);
                    let found = entries.iter().map(|entry| (one(entry), verdict(&entry[1])));
                    return found
                        .filter_map(|(is, verdict)| Some((is, verdict?)))
                        .filter(|(is, _)| *is != Match::No)
                        .collect();
                }
                _ => match verdict_of(key, value) {
                    Some(verdict) if matches != Match::No => return vec![(matches, verdict)],
                    Some(_) => return Vec::new(),
                    None => Match::Yes,
                },
            });
        }
        Vec::new()
    }
}

/// An expression is an object with one key.
fn single(expression: &Value) -> Option<(&str, &Value)> {
    expression.as_object()?.iter().next().map(|(key, value)| (key.as_str(), value))
}

fn verdict(value: &Value) -> Option<Verdict<'_>> {
    single(value).and_then(|(key, value)| verdict_of(key, value))
}

fn verdict_of<'a>(key: &str, value: &'a Value) -> Option<Verdict<'a>> {
    let target = || value["target"].as_str().unwrap_or_default();
    Some(match key {
        "accept" => Verdict::Ends(Ends::ACCEPTED),
        "drop" | "reject" => Verdict::Ends(Ends::DROPPED),
        "return" => Verdict::Ends(Ends::RETURNED),
        "queue" => Verdict::Ends(Ends::UNKNOWN),
        "jump" => Verdict::Jump(target()),
        "goto" => Verdict::Goto(target()),
        "xt" if value["type"] == "target" => match value["name"].as_str() {
            Some("REJECT" | "DROP") => Verdict::Ends(Ends::DROPPED),
            Some("ACCEPT") => Verdict::Ends(Ends::ACCEPTED),
            Some("NFQUEUE") => Verdict::Ends(Ends::UNKNOWN),
            _ => return None,
        },
        _ => return None,
    })
}

/// What one of iptables' own matches says, taken from nft's translation of the rule.
fn extension(name: &str, words: &str, packet: &Packet) -> Match {
    match name {
        "comment" => Match::Yes,
        "icmp" | "icmp6" => Match::No,
        "conntrack" | "state" => {
            let words: Vec<&str> = words.split_whitespace().collect();
            let mut found = words.iter().enumerate().filter(|(_, word)| **word == "ct").map(|(at, _)| {
                let negated = words.get(at + 2).is_some_and(|word| *word == "!=");
                let values = words.get(if negated { at + 3 } else { at + 2 }).copied().unwrap_or_default();
                let values = values.split(',').map(Value::from).collect::<Vec<_>>();
                let key = serde_json::json!({"ct": {"key": words.get(at + 1).copied().unwrap_or_default()}});
                let is = packet.equals(&key, &Value::from(values));
                if negated { is.not() } else { is }
            });
            let first = found.next();
            first.map_or(Match::Maybe, |first| found.fold(first, Match::and))
        }
        "addrtype" if words.contains("fib daddr type local") => Match::of(packet.output.is_none()),
        _ => Match::Maybe,
    }
}

impl Packet {
    fn matches(&self, expression: &Value) -> Match {
        let (left, right) = (&expression["left"], &expression["right"]);
        // A packet that lacks the header matches neither `==` nor `!=`.
        if self.lacks(left) {
            return Match::No;
        }
        match expression["op"].as_str() {
            Some("==" | "in") => self.equals(left, right),
            Some("!=") => self.equals(left, right).not(),
            _ => Match::Maybe,
        }
    }

    fn lacks(&self, left: &Value) -> bool {
        match left["payload"]["protocol"].as_str() {
            Some("ip") => self.ipv6,
            Some("ip6") => !self.ipv6,
            Some("tcp" | "udp" | "udplite" | "sctp" | "dccp" | "icmp" | "icmpv6" | "igmp" | "esp" | "ah") => {
                left["payload"]["protocol"] != self.protocol
            }
            _ => false,
        }
    }

    /// Whether the field that `left` names has one of the values on the right.
    fn equals(&self, left: &Value, right: &Value) -> Match {
        let several = right.as_array().or_else(|| right["set"].as_array());
        if let Some(values) = several {
            return values.iter().map(|value| self.equals(left, value)).fold(Match::No, Match::or);
        }
        if self.lacks(left) {
            return Match::No;
        }
        // The rule compares the whole mark or some of its bits.
        if let Some(of) = left["&"].as_array() {
            let is_mark = of.first().is_some_and(|first| first["meta"]["key"] == "mark");
            let is_kube_proxys = is_mark && right.as_u64() == Some(KUBE_PROXY_MARK) && of.get(1) == Some(right);
            return if is_kube_proxys { Match::No } else { Match::Maybe };
        }
        let word = right.as_str();
        if word.is_some_and(|word| word.starts_with('@')) {
            return Match::Maybe;
        }
        let is = |value: &str| word.map_or(Match::Maybe, |word| Match::of(word == value));
        let family = if self.ipv6 { "ipv6" } else { "ipv4" };
        match (left["meta"]["key"].as_str(), left["ct"]["key"].as_str()) {
            (Some("iifname" | "iif"), _) => device(&self.input, word),
            (Some("oifname" | "oif"), _) => self.output.as_ref().map_or(Match::No, |output| device(output, word)),
            (Some("l4proto"), _) => is(self.protocol),
            (Some("nfproto"), _) => is(family),
            (Some("pkttype"), _) => is("unicast").or(is("host")),
            (_, Some("state")) => is("new"),
            // The judged packets go directly from pod to pod, without translation.
            (_, Some("status")) if word.is_some_and(|word| matches!(word, "dnat" | "snat")) => Match::No,
            (_, Some("direction")) => is("original"),
            _ => self.header(left, right),
        }
    }

    fn header(&self, left: &Value, right: &Value) -> Match {
        match left["payload"]["field"].as_str() {
            Some("saddr") => range(self.source, right),
            Some("daddr") => range(self.destination, right),
            Some("protocol" | "nexthdr") => {
                right.as_str().map_or(Match::Maybe, |word| Match::of(word == self.protocol))
            }
            Some("dport") => match (self.port, right.as_u64()) {
                (Some(port), Some(wanted)) => Match::of(u64::from(port) == wanted),
                _ => Match::Maybe,
            },
            _ => Match::Maybe,
        }
    }
}

fn device(device: &Device, wanted: Option<&str>) -> Match {
    let Some(wanted) = wanted else { return Match::Maybe };
    match (device, wanted.strip_suffix('*')) {
        (Device::Unknown, _) => Match::Maybe,
        (Device::Named(name), None) => Match::of(name == wanted),
        (Device::Named(name), Some(prefix)) => Match::of(name.starts_with(prefix)),
        (Device::Prefix(name), Some(prefix)) if name.starts_with(prefix) => Match::Yes,
        (Device::Prefix(name), prefix) if prefix.unwrap_or(wanted).starts_with(name.as_str()) => Match::Maybe,
        (Device::Prefix(_), _) => Match::No,
    }
}

fn range(within: Option<IpNet>, wanted: &Value) -> Match {
    let (Some(within), Some(wanted)) = (within, network(wanted)) else { return Match::Maybe };
    if wanted.contains(&within) {
        Match::Yes
    } else if within.contains(&wanted) {
        Match::Maybe
    } else {
        Match::No
    }
}

fn network(value: &Value) -> Option<IpNet> {
    if let Some(text) = value.as_str() {
        return text.parse::<std::net::IpAddr>().ok().map(IpNet::from);
    }
    let address = value["prefix"]["addr"].as_str()?.parse().ok()?;
    IpNet::new(address, u8::try_from(value["prefix"]["len"].as_u64()?).ok()?).ok()
}
