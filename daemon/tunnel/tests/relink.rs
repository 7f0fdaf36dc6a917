#![allow(clippy::unwrap_used, missing_docs, dead_code)]
mod common;
use common::*;
use hauberk_tunnel::*;
#[test]
fn relink() {
    let playground = Playground::new();
    let [mut a, _b] = connected(&playground, Node::outer_v4);
    let node = &playground.nodes[0];
    let mut lost = 0;
    for _ in 0..50 {
        a.close();
        let from = Node::A.inner_v4();
        let to = Node::B.inner_v4();
        let (t, before) = node.within(move || {
            let t = Tunnel::start(Node::A.config()).unwrap();
            let s = std::net::UdpSocket::bind((from, 0)).unwrap();
            let _ = s.send_to(b"x", (to, 9));
            (t, ())
        });
        a = t;
        let _ = before;
        std::thread::sleep(std::time::Duration::from_millis(50));
        if a.stats().unwrap().drops.of(TunnelDrop::NoPeer) == 0 {
            lost += 1;
        }
    }
    println!("lost {lost} of 50");
}
