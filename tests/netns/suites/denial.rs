//! Whatever is missing or wrong, protected packets are dropped, counted and explained, and existing
//! tunnels go on.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hauberk_api::{DropReason, Encryption, Event, FlowRecord, PeerState};
use hauberk_netns::capture::Moment;
use hauberk_netns::manifests::{self, KEYS};
use hauberk_netns::traffic::{Exchange, Protocol, UdpStreamer, exchange, wait_answered};
use hauberk_netns::{Cluster, Context, Family, Pod, Setup, Test, eventually};
use serde_json::json;

pub const TESTS: &[Test] = &[
    Test::new("denial::no_key_drops_and_says_so", no_key),
    Test::new("denial::wrong_key_drops_and_says_so", wrong_key),
    Test::new("denial::unusable_keys_are_refused_by_name", unusable_keys),
    Test::new("denial::a_changed_key_is_taken_up", changed_key),
    Test::new("denial::blocked_handshakes_drop_and_recover", blocked_handshakes),
    Test::new("denial::folder_gone_keeps_what_works", folder_gone),
    Test::new("denial::folder_empty_at_start_stays_closed", folder_empty),
    Test::new("denial::folder_that_fills_slowly_never_opens", folder_slow),
    Test::new("denial::folder_of_another_cluster_opens_nothing", folder_foreign),
    Test::new("denial::malformed_objects_reject_only_themselves", malformed_objects),
];

/// Three nodes. Faults are made between the first and the third; the second shows that other nodes
/// are not affected.
struct Playground {
    cluster: Cluster,
    a: Pod,
    b: Pod,
    c: Pod,
}

impl Playground {
    fn build(context: &Context) -> Result<Playground> {
        let cluster = Cluster::build(context, Setup { nodes: 3, ..Setup::default() })?;
        cluster.namespace("payments", Some("enabled"))?;
        cluster.namespace("public", None)?;
        let pods =
            [cluster.pod("payments", "a", 0)?, cluster.pod("payments", "b", 1)?, cluster.pod("payments", "c", 2)?];
        cluster.wait_known(&pods.each_ref())?;
        let [a, b, c] = pods;
        Ok(Playground { cluster, a, b, c })
    }

    fn bystander(&self) -> Result<UdpStreamer> {
        let stream = UdpStreamer::start(&self.a, &self.b, Family::V6, 100, Duration::from_millis(5))?;
        stream.wait_flowing()?;
        Ok(stream)
    }

    fn works(&self, from: &Pod, to: &Pod) -> Result<()> {
        for family in Family::ALL {
            wait_answered(&Exchange::new(Protocol::Tcp, family, from, to))?;
        }
        Ok(())
    }

    /// Fails if anything gets through from `a` to `c`.
    fn is_denied(&self) -> Result<()> {
        for family in Family::ALL {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
                let one = Exchange::new(protocol, family, &self.a, &self.c).patience(Duration::from_millis(700));
                let outcome = exchange(&one)?;
                ensure!(!outcome.delivered && !outcome.answered, "{one} got through: {outcome:?}");
            }
        }
        Ok(())
    }

    fn assert_tight(&self) -> Result<()> {
        self.cluster.assert_no_cleartext(&[&self.a, &self.b, &self.c], Moment::START)
    }

    /// Drops on the first node, for any reason.
    fn drops(&self) -> Result<u64> {
        Ok(self.cluster.nodes[0].agent.all_drops()?.values().sum())
    }

    /// The first agent has started and knows no other node: drops are counted under traffic, the
    /// status reports a problem, and nothing is in the clear.
    fn is_closed(&self) -> Result<()> {
        let agent = &self.cluster.nodes[0].agent;
        eventually("the agent to answer", || Ok(agent.status().is_ok().then_some(())))?;
        let before = self.drops()?;
        eventually("drops to be counted", || Ok((self.drops()? > before).then_some(())))?;
        eventually("the status to name a problem", || Ok((!agent.status()?.problems.is_empty()).then_some(())))?;
        self.assert_tight()
    }

    /// Stops the third agent, so that its annotation stays as a test writes it.
    fn silence_third(&self) -> Result<()> {
        self.cluster.nodes[2].agent.kill()
    }

    fn annotate(&self, node: &str, keys: Option<&str>) -> Result<()> {
        self.cluster.manifests.change("node", node, |object| match keys {
            Some(keys) => object["metadata"]["annotations"][KEYS] = json!(keys),
            None => {
                if let Some(annotations) = object["metadata"]["annotations"].as_object_mut() {
                    annotations.remove(KEYS);
                }
            }
        })
    }

    fn annotation(&self, node: &str) -> Result<String> {
        let object = self.cluster.manifests.read("node", node)?;
        let keys = object["metadata"]["annotations"][KEYS].as_str();
        Ok(keys.with_context(|| format!("{node} has published no key"))?.to_owned())
    }
}

/// The annotation's text for a key.
fn published(key: &[u8; 32]) -> String {
    manifests::keys(&BASE64.encode(key))
}

/// A well-formed public key that no node here owns.
fn stranger(seed: u8) -> [u8; 32] {
    let secret = x25519_dalek::StaticSecret::from([seed; 32]);
    x25519_dalek::PublicKey::from(&secret).to_bytes()
}

fn no_key(context: &Context) -> Result<()> {
    let playground = Playground::build(context)?;
    let bystander = playground.bystander()?;
    playground.works(&playground.a, &playground.c)?;
    playground.silence_third()?;
    playground.annotate("n3", None)?;
    let agent = &playground.cluster.nodes[0].agent;
    eventually("n3 to be without a key", || {
        let status = agent.status()?;
        Ok(status.peers.iter().any(|peer| peer.node == "n3" && peer.state == PeerState::NoKey).then_some(()))
    })?;
    let before = agent.drops("no_peer")?;
    playground.is_denied()?;
    eventually("drops to be counted as no_peer", || Ok((agent.drops("no_peer")? > before).then_some(())))?;
    let explained = agent.explain(playground.a.v4.into(), playground.c.v4.into())?;
    ensure!(
        explained.encryption == Encryption::Refused && explained.drop == Some(DropReason::NoPeer.into()),
        "{explained:?}"
    );
    let flows = agent.flows()?;
    let refused = |flow: &FlowRecord| {
        flow.destination == std::net::IpAddr::from(playground.c.v4) && flow.encryption == Encryption::Refused
    };
    ensure!(flows.iter().any(refused), "no flow record says refused");
    let (code, printed, _) = playground.cluster.nodes[0].cli(&["status"])?;
    ensure!(code != 0, "`hauberk status` ends with success although protected pods cannot talk:\n{printed}");
    bystander.wait_flowing()?;
    bystander.stop()?;
    // The agent publishes its key again, and traffic recovers.
    playground.cluster.nodes[2].start_agent()?;
    playground.works(&playground.a, &playground.c)?;
    playground.assert_tight()
}

fn wrong_key(context: &Context) -> Result<()> {
    let playground = Playground::build(context)?;
    let bystander = playground.bystander()?;
    playground.works(&playground.a, &playground.c)?;
    playground.silence_third()?;
    playground.annotate("n3", Some(&published(&stranger(7))))?;
    let agent = &playground.cluster.nodes[0].agent;
    let wrong = BASE64.encode(stranger(7));
    eventually("the first node to take up the wrong key", || {
        let status = agent.status()?;
        Ok(status.peers.iter().any(|peer| peer.keys.iter().any(|key| key.public_key == wrong)).then_some(()))
    })?;
    playground.is_denied()?;
    eventually("the peer to be anything but established", || {
        let status = agent.status()?;
        let peer = status.peers.iter().find(|peer| peer.node == "n3").context("no peer n3")?;
        Ok((peer.state != PeerState::Established).then_some(()))
    })?;
    bystander.wait_flowing()?;
    bystander.stop()?;
    playground.cluster.nodes[2].start_agent()?;
    playground.works(&playground.a, &playground.c)?;
    playground.works(&playground.c, &playground.a)?;
    playground.assert_tight()
}

fn unusable_keys(context: &Context) -> Result<()> {
    let playground = Playground::build(context)?;
    let bystander = playground.bystander()?;
    playground.silence_third()?;
    let agent = &playground.cluster.nodes[0].agent;
    let mut one_point = [0; 32];
    one_point[0] = 1;
    let own = playground.annotation("n1")?;
    let others = playground.annotation("n2")?;
    let cases = [
        ("not JSON", "{".to_owned(), None),
        ("of a version to come", json!({"version": 99, "keys": []}).to_string(), None),
        ("all zeroes", published(&[0; 32]), None),
        ("a point of small order", published(&one_point), None),
        ("the first node's own", own.clone(), Some("n1")),
        ("the second node's", others.clone(), Some("n2")),
    ];
    for (what, annotation, other) in cases {
        playground.annotate("n3", Some(&annotation))?;
        eventually(format!("an event about a key that is {what}"), || {
            let events = agent.events()?;
            let names = |event: &Event, node: &str| {
                event.objects.iter().any(|object| object.ends_with(node)) || event.message.contains(node)
            };
            let about = |event: &&Event| event.warning && names(event, "n3");
            let told = events.iter().filter(about).any(|event| other.is_none_or(|other| names(event, other)));
            ensure!(told, "no event; there are {events:?}");
            let status = agent.status()?;
            let keys = status.peers.iter().filter(|peer| peer.node == "n3").flat_map(|peer| &peer.keys);
            let used = keys.filter(|key| annotation.contains(&key.public_key)).count();
            ensure!(used == 0, "the key is in use");
            Ok(Some(()))
        })?;
        bystander.wait_flowing().with_context(|| format!("with a key that is {what}"))?;
    }
    bystander.stop()?;
    playground.cluster.nodes[2].start_agent()?;
    playground.works(&playground.a, &playground.c)?;
    playground.assert_tight()
}

fn changed_key(context: &Context) -> Result<()> {
    let playground = Playground::build(context)?;
    let bystander = playground.bystander()?;
    playground.works(&playground.a, &playground.c)?;
    let node = &playground.cluster.nodes[2];
    let before = playground.annotation("n3")?;
    node.agent.terminate()?;
    let mut removed = 0;
    // The node's keys are lost, as with a disk. Its attachments are kept.
    for entry in walk(&node.state)? {
        let name = entry.strip_prefix(&node.state).unwrap_or(&entry);
        if name.to_string_lossy().contains("key") && entry.is_file() {
            fs::remove_file(&entry).with_context(|| format!("remove {}", entry.display()))?;
            removed += 1;
        }
    }
    ensure!(removed > 0, "no key file in {}", node.state.display());
    node.start_agent()?;
    node.agent.wait_ready()?;
    eventually("n3 to publish another key", || Ok((playground.annotation("n3")? != before).then_some(())))?;
    playground.works(&playground.a, &playground.c)?;
    playground.works(&playground.c, &playground.a)?;
    bystander.wait_flowing()?;
    bystander.stop()?;
    playground.assert_tight()
}

/// Every path below a folder.
fn walk(directory: &std::path::Path) -> Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(walk(&path)?);
        }
        found.push(path);
    }
    Ok(found)
}

fn blocked_handshakes(context: &Context) -> Result<()> {
    let playground = Playground::build(context)?;
    // Before there is any tunnel between the first and the third node.
    playground.cluster.nodes[2].netns.nft(
        "table inet block {
            chain input { type filter hook input priority filter; policy accept; udp dport 51840 drop; }
        }",
    )?;
    playground.is_denied()?;
    let bystander = playground.bystander()?;
    playground.assert_tight()?;
    playground.cluster.nodes[2].netns.nft("delete table inet block")?;
    playground.works(&playground.a, &playground.c)?;
    bystander.wait_flowing()?;
    bystander.stop()?;
    playground.assert_tight()
}

fn folder_gone(context: &Context) -> Result<()> {
    let playground = Playground::build(context)?;
    let bystander = playground.bystander()?;
    playground.works(&playground.a, &playground.c)?;
    let directory = playground.cluster.manifests.directory();
    let away = directory.with_extension("away");
    fs::rename(directory, &away).context("move the folder away")?;
    let agent = &playground.cluster.nodes[0].agent;
    eventually("the status to say that the folder is gone", || {
        Ok(agent.status()?.source.unavailable_since.is_some().then_some(()))
    })?;
    bystander.wait_flowing()?;
    playground.works(&playground.a, &playground.c)?;
    // An agent that starts without the folder knows no other node: nothing gets out, and the drops
    // are counted.
    playground.cluster.nodes[0].agent.kill()?;
    playground.cluster.nodes[0].start_agent()?;
    playground.is_closed()?;
    fs::rename(&away, directory).context("move the folder back")?;
    eventually("the status to say that the folder is back", || {
        Ok(agent.status()?.source.unavailable_since.is_none().then_some(()))
    })?;
    agent.wait_ready()?;
    playground.works(&playground.c, &playground.a)?;
    bystander.wait_flowing()?;
    bystander.stop()?;
    playground.assert_tight()
}

fn folder_empty(context: &Context) -> Result<()> {
    let playground = Playground::build(context)?;
    let bystander = playground.bystander()?;
    let back = UdpStreamer::start(&playground.b, &playground.a, Family::V4, 100, Duration::from_millis(5))?;
    back.wait_flowing()?;
    let empty = context.directory.join("empty");
    fs::create_dir_all(&empty).context("make an empty folder")?;
    let node = &playground.cluster.nodes[0];
    node.agent.terminate()?;
    let config = json!({"clusterRanges": hauberk_netns::cluster::CLUSTER_RANGES});
    node.configure(&empty, &config)?;
    node.start_agent()?;
    playground.is_closed()?;
    node.agent.kill()?;
    node.configure(playground.cluster.manifests.directory(), &config)?;
    node.start_agent()?;
    node.agent.wait_ready()?;
    playground.works(&playground.a, &playground.c)?;
    bystander.wait_flowing()?;
    back.wait_flowing()?;
    bystander.stop()?;
    back.stop()?;
    playground.assert_tight()
}

/// Objects arrive one by one; the protecting objects arrive last.
fn folder_slow(context: &Context) -> Result<()> {
    let playground = Playground::build(context)?;
    let bystander = playground.bystander()?;
    let slow = context.directory.join("slow");
    fs::create_dir_all(&slow).context("make a folder")?;
    let node = &playground.cluster.nodes[0];
    node.agent.kill()?;
    let config = json!({"clusterRanges": hauberk_netns::cluster::CLUSTER_RANGES});
    node.configure(&slow, &config)?;
    node.start_agent()?;
    for kind in ["pod", "node", "namespace"] {
        for entry in fs::read_dir(playground.cluster.manifests.directory()).context("read the folder")? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(kind) {
                let staged = slow.with_extension("staged");
                fs::copy(entry.path(), &staged).context("copy")?;
                fs::rename(&staged, slow.join(entry.file_name())).context("rename")?;
                std::thread::sleep(Duration::from_millis(150));
                playground.assert_tight().with_context(|| format!("after {:?}", entry.file_name()))?;
            }
        }
    }
    node.agent.wait_ready()?;
    playground.works(&playground.a, &playground.c)?;
    bystander.wait_flowing()?;
    bystander.stop()?;
    playground.assert_tight()
}

/// The folder has the same pods and namespaces, but the namespaces are not opted in and the nodes
/// have other names.
fn folder_foreign(context: &Context) -> Result<()> {
    let playground = Playground::build(context)?;
    let bystander = playground.bystander()?;
    let directory = playground.cluster.manifests.directory();
    let (ours, theirs) = (directory.with_extension("ours"), directory.with_extension("theirs"));
    fs::create_dir_all(&theirs).context("make a folder")?;
    for entry in fs::read_dir(directory).context("read the folder")? {
        let entry = entry?;
        let text = fs::read_to_string(entry.path()).context("read a manifest")?;
        let text = if entry.file_name().to_string_lossy().starts_with("node") {
            text.replace("name: n", "name: x")
        } else {
            text.replace(": enabled", ": disabled")
        };
        fs::write(theirs.join(entry.file_name()), text).context("write a manifest")?;
    }
    fs::rename(directory, &ours).context("move our folder away")?;
    fs::rename(&theirs, directory).context("move the other folder here")?;
    for node in &playground.cluster.nodes {
        eventually("the status to say that the folder is another cluster's", || {
            Ok(node.agent.status()?.source.unavailable_since.is_some().then_some(()))
        })?;
    }
    bystander.wait_flowing()?;
    playground.works(&playground.a, &playground.c)?;
    playground.assert_tight()?;
    // An agent that starts with this folder accepts none of it either.
    playground.cluster.nodes[0].agent.kill()?;
    playground.cluster.nodes[0].start_agent()?;
    playground.is_closed()?;
    playground.assert_tight()?;
    fs::rename(directory, &theirs).context("move the other folder away")?;
    fs::rename(&ours, directory).context("move our folder back")?;
    playground.cluster.nodes[0].agent.wait_ready()?;
    playground.works(&playground.c, &playground.a)?;
    bystander.wait_flowing()?;
    bystander.stop()?;
    playground.assert_tight()
}

fn malformed_objects(context: &Context) -> Result<()> {
    let playground = Playground::build(context)?;
    let bystander = playground.bystander()?;
    let manifests = &playground.cluster.manifests;
    let agent = &playground.cluster.nodes[0].agent;
    let before = agent.status()?.source.rejected;
    manifests.put_text("pod-broken.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: [")?;
    manifests.put_text(
        "namespace-half.yaml",
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  labels: {hauberk.io/encryption: ena",
    )?;
    eventually("the malformed objects to be rejected", || {
        let rejected = agent.status()?.source.rejected;
        ensure!(rejected >= before + 2, "{rejected} rejected, {before} before");
        Ok(Some(()))
    })?;
    // Two pods with one address: the protected one wins, and an event names both.
    let mut thief = manifests::pod("public", "thief", "n2");
    manifests::set_addresses(&mut thief, &playground.b.addresses());
    manifests.put("pod", "public-thief", &thief)?;
    eventually("an event that names both pods", || {
        let events = agent.events()?;
        let both = |event: &Event| {
            ["payments/b", "public/thief"]
                .iter()
                .all(|name| event.objects.iter().any(|object| object.ends_with(name)) || event.message.contains(name))
        };
        Ok(events.iter().any(|event| event.warning && both(event)).then_some(()))
    })?;
    let late = playground.cluster.pod("payments", "late", 2)?;
    playground.works(&playground.a, &late)?;
    bystander.wait_flowing()?;
    bystander.stop()?;
    ensure!(playground.drops().is_ok(), "the agent does not answer");
    playground.assert_tight()
}
