//! What becomes of the leaks that were read from the observer's maps.

use super::*;

#[test]
fn what_was_excused_or_overtaken_is_not_counted() {
    let mut agent = crate::testing::agent("n1");
    let leak = Leak {
        device: 7,
        source: "10.0.1.1".parse().unwrap(),
        destination: "10.0.2.3".parse().unwrap(),
        source_port: 1,
        destination_port: 443,
        protocol: 6,
    };
    let mut reader = Reader { names: BTreeMap::from([(7, "eth7".to_owned())]), ..Reader::default() };
    let now = (100 * GRACE, Timestamp::now());
    let tell = |reader: &Reader, agent: &mut AgentState, news: &[News], overtaken: &[u32]| {
        let lost = overtaken.iter().map(|device| (*device, Lost::Overtaken)).collect();
        reader.tell(agent, BTreeMap::from([(7, 5)]), news, &lost, now);
        agent.leaks.counts().first().map_or(0, |count| count.packets)
    };
    let news = reader.news(vec![(leak, Noted { packets: 5, last: now.0 })]);
    assert_eq!(tell(&reader, &mut agent, &news, &[7]), 0);
    agent.changes.note(None, now.0);
    assert_eq!(tell(&reader, &mut agent, &news, &[]), 0);
    agent.changes = crate::observe::changes::Changes::default();
    assert_eq!(tell(&reader, &mut agent, &news, &[]), 5);
    assert_eq!(agent.events.list()[0].reason, "LeakSeen");
    assert!(reader.news(vec![(leak, Noted { packets: 5, last: now.0 })]).is_empty());
    // The entry was evicted from the map and came back.
    assert_eq!(reader.news(vec![(leak, Noted { packets: 2, last: now.0 })])[0].packets, 2);
}
