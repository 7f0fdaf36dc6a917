//! Protected pods on two nodes that talk without pause while a test changes the cluster.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hauberk_cluster::Cluster;
use hauberk_netns::analysis::{self, Kind};
use hauberk_netns::capture::Moment;
use hauberk_netns::traffic::{TcpStreamer, UdpStreamer};
use hauberk_netns::{Family, Party, wait};

/// Time between two messages of a stream. It is long because captured frames stay in memory.
const PACE: Duration = Duration::from_millis(20);
const BYTES: usize = 200;
/// After a long silence TCP waits as long again before its next retransmission.
const PATIENCE: Duration = Duration::from_secs(180);

/// A pod on each of two nodes, with connections and datagrams in both families and both directions.
pub struct Conversation<'a> {
    cluster: &'a Cluster,
    /// The two pods.
    pub pods: [Party; 2],
    since: Moment,
    connections: Vec<TcpStreamer>,
    datagrams: Vec<UdpStreamer>,
}

impl<'a> Conversation<'a> {
    /// Runs the pods in an opted-in namespace, and waits until all streams flow.
    pub fn begin(cluster: &'a Cluster, namespace: &str, nodes: [&str; 2]) -> Result<Conversation<'a>> {
        let since = cluster.capture.sync()?;
        let name = |node: &str| format!("{node}-between-{}-and-{}", nodes[0], nodes[1]);
        let [a, b] =
            [cluster.pod(namespace, &name(nodes[0]), nodes[0])?, cluster.pod(namespace, &name(nodes[1]), nodes[1])?];
        let connections = vec![
            TcpStreamer::start(&a, &b, Family::V4, BYTES, PACE)?,
            TcpStreamer::start(&b, &a, Family::V6, BYTES, PACE)?,
        ];
        let datagrams = vec![
            UdpStreamer::start(&b, &a, Family::V4, BYTES, PACE)?,
            UdpStreamer::start(&a, &b, Family::V6, BYTES, PACE)?,
        ];
        let conversation = Conversation { cluster, pods: [a, b], since, connections, datagrams };
        conversation.wait_flowing("before anything happened")?;
        Ok(conversation)
    }

    /// Waits until every stream delivers data that is sent from now on.
    pub fn wait_flowing(&self, when: &str) -> Result<()> {
        let before = self.arrived();
        wait::within(PATIENCE, format!("all streams of {} to flow {when}", self.pods[0].name), || {
            let now = self.arrived();
            ensure!(
                now.iter().zip(&before).all(|(now, before)| *now > before + 3),
                "arrived: {before:?}, then {now:?}"
            );
            Ok(Some(()))
        })
    }

    /// The number of messages that arrived, per stream.
    fn arrived(&self) -> Vec<u64> {
        let connections = self.connections.iter().map(TcpStreamer::echoed);
        connections.chain(self.datagrams.iter().map(UdpStreamer::received)).collect()
    }

    /// Ends the conversation. Fails if a connection broke, or if a packet of these pods was ever in
    /// the clear.
    pub fn end(self) -> Result<()> {
        for connection in self.connections {
            let report = connection.stop().with_context(|| self.pods[0].name.clone())?;
            println!("{}: TCP survived, longest stall {:?}", self.pods[0].name, report.longest_stall);
        }
        for stream in self.datagrams {
            let report = stream.stop()?;
            let (name, lost) = (&self.pods[0].name, report.lost());
            println!("{name}: UDP lost {lost} of {}, longest gap {:?}", report.sent, report.longest_gap);
        }
        self.cluster.assert_no_cleartext(&self.pods.each_ref(), self.since)?;
        let sealed = analysis::of_kind(&self.cluster.capture.since(self.since)?, Kind::Tunnel).len();
        ensure!(sealed > 0, "{} talked to another node and nothing was on the wire", self.pods[0].name);
        Ok(())
    }
}
