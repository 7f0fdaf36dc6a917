//! The runtime's record of every pod's network: libcni's cache of results, one JSON file per
//! interface (`cachedInfo` in libcni's `api.go`). Another program writes it, so it is not trusted:
//! only a file that makes no sense is rejected.

use std::fs;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::Path;

use hauberk_api::{PodReference, Reserve};
use ipnet::IpNet;
use serde::Deserialize;

use super::check_names;

/// In bytes. No result is larger.
const MAX_BYTES: u64 = 1 << 20;
/// The loopback interface, which every pod has and which sends nothing.
const LOOPBACK: &str = "lo";

/// An interface that another plugin made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ForeignInterface {
    /// The container, the interface and the pod.
    pub(super) request: Reserve,
    /// Its addresses.
    pub(super) addresses: Vec<IpAddr>,
    /// Names of the host's interfaces in the result.
    pub(super) host_interfaces: Vec<String>,
    /// The MAC address inside the pod, if the result has it.
    pub(super) pod_mac: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cached {
    kind: String,
    container_id: String,
    if_name: String,
    #[serde(default)]
    netns: String,
    #[serde(default)]
    cni_args: Option<Vec<(String, String)>>,
    result: CachedResult,
}

#[derive(Deserialize)]
struct CachedResult {
    #[serde(default)]
    interfaces: Vec<CachedInterface>,
    #[serde(default)]
    ips: Vec<CachedAddress>,
}

#[derive(Deserialize)]
struct CachedInterface {
    name: String,
    #[serde(default)]
    mac: String,
    #[serde(default)]
    sandbox: String,
}

#[derive(Deserialize)]
struct CachedAddress {
    address: IpNet,
    interface: Option<usize>,
}

/// Every usable file of the folder, and a sentence for each unusable one. A missing folder has
/// none.
///
/// # Errors
/// The folder cannot be read.
pub(super) fn read(folder: &Path) -> io::Result<(Vec<ForeignInterface>, Vec<String>)> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Default::default()),
        Err(error) => return Err(error),
    };
    let (mut told, mut problems) = (Vec::new(), Vec::new());
    for entry in entries {
        let path = entry?.path();
        match contents(&path).map_err(|error| error.to_string()).and_then(|text| parse(&text)) {
            Ok(Some(one)) => told.push(one),
            Ok(None) => {}
            // The file disappeared after the folder was listed, and with it its pod.
            Err(_) if !path.exists() => {}
            Err(error) => problems.push(format!(
                "{}: not a usable CNI result: {error}; a pod that it is of is not adopted until it is made anew",
                path.display()
            )),
        }
    }
    Ok((told, problems))
}

fn contents(path: &Path) -> io::Result<Vec<u8>> {
    if !fs::symlink_metadata(path)?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut text = Vec::new();
    fs::File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(io::Error::other(format!("more than {MAX_BYTES} bytes")));
    }
    Ok(text)
}

/// None if no interface in it can be adopted.
pub(super) fn parse(text: &[u8]) -> Result<Option<ForeignInterface>, String> {
    let cached: Cached = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if cached.kind != "cniCacheV1" {
        return Err(format!("its kind is {:?}, not cniCacheV1", cached.kind));
    }
    if cached.if_name == LOOPBACK {
        return Ok(None);
    }
    let interfaces = &cached.result.interfaces;
    let own = interfaces.iter().position(|one| one.name == cached.if_name && !one.sandbox.is_empty());
    let is_own = |address: &&CachedAddress| address.interface.is_none_or(|index| Some(index) == own);
    let addresses: Vec<IpAddr> = cached.result.ips.iter().filter(is_own).map(|ip| ip.address.addr()).collect();
    if addresses.is_empty() {
        return Ok(None);
    }
    let host_interfaces = interfaces.iter().filter(|one| one.sandbox.is_empty()).map(|one| one.name.clone()).collect();
    let pod_mac = own.and_then(|index| interfaces.get(index)).map(|own| own.mac.to_lowercase());
    let request = Reserve {
        pod: pod(cached.cni_args.as_deref().unwrap_or_default()),
        container: cached.container_id,
        interface: cached.if_name,
        netns: cached.netns,
    };
    check_names(&request).map_err(|error| error.to_string())?;
    Ok(Some(ForeignInterface { request, addresses, host_interfaces, pod_mac: pod_mac.filter(|mac| !mac.is_empty()) }))
}

/// A pod whose name makes no sense is unknown, and therefore protected.
fn pod(arguments: &[(String, String)]) -> Option<PodReference> {
    let value = |key: &str| {
        let (_, value) = arguments.iter().find(|(name, _)| name == key)?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        (!value.is_empty() && value.len() <= 253 && value.bytes().all(plain)).then(|| value.clone())
    };
    Some(PodReference {
        namespace: value("K8S_POD_NAMESPACE")?,
        name: value("K8S_POD_NAME")?,
        uid: value("K8S_POD_UID"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As containerd writes it for the bridge plugin.
    const BRIDGE: &str = r#"{"kind":"cniCacheV1","containerId":"0123ab","config":"e30=","ifName":"eth0","networkName":"net",
        "netns":"/var/run/netns/cni-1","cniArgs":[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","payments"],
        ["K8S_POD_NAME","api-0"],["K8S_POD_UID","8d"]],"capabilityArgs":{},"result":{"cniVersion":"1.0.0",
        "interfaces":[{"name":"cni0","mac":"02:00:00:00:00:01"},{"name":"veth12","mac":"02:00:00:00:00:02"},
        {"name":"eth0","mac":"02:00:00:00:00:AA","sandbox":"/var/run/netns/cni-1"}],
        "ips":[{"interface":2,"address":"10.244.1.5/24","gateway":"10.244.1.1"}],"routes":[{"dst":"0.0.0.0/0"}],"dns":{}}}"#;

    #[test]
    fn a_result_tells_the_pod_its_addresses_and_where_to_look() {
        let told = parse(BRIDGE.as_bytes()).unwrap().unwrap();
        assert_eq!((told.request.container.as_str(), told.request.interface.as_str()), ("0123ab", "eth0"));
        let pod = told.request.pod.unwrap();
        assert_eq!((pod.namespace.as_str(), pod.name.as_str(), pod.uid.as_deref()), ("payments", "api-0", Some("8d")));
        assert_eq!(told.addresses, ["10.244.1.5".parse::<IpAddr>().unwrap()]);
        assert_eq!(told.host_interfaces, ["cni0", "veth12"]);
        assert_eq!(told.pod_mac.as_deref(), Some("02:00:00:00:00:aa"));
    }

    #[test]
    fn what_is_no_pods_interface_is_passed_over_and_what_makes_no_sense_is_told() {
        assert_eq!(parse(BRIDGE.replace(r#""ifName":"eth0""#, r#""ifName":"lo""#).as_bytes()).unwrap(), None);
        assert_eq!(parse(BRIDGE.replace(r#""interface":2"#, r#""interface":0"#).as_bytes()).unwrap(), None);
        let nobody = parse(BRIDGE.replace("payments", "../etc").as_bytes()).unwrap().unwrap();
        assert_eq!(nobody.request.pod, None);
        for (from, to) in [("cniCacheV1", "x"), ("0123ab", "../x"), ("10.244.1.5/24", "10.244.1.5/99"), ("kind", "x")] {
            assert!(parse(BRIDGE.replace(from, to).as_bytes()).is_err(), "{from} -> {to}");
        }
        for text in ["", "{", "[]", "null", "{\"kind\":1}"] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_bad_file_rejects_only_itself() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(&folder.path().join("none")).unwrap(), Default::default());
        fs::write(folder.path().join("net-0123ab-eth0"), BRIDGE).unwrap();
        fs::write(folder.path().join("net-torn-eth0"), &BRIDGE[..40]).unwrap();
        fs::write(folder.path().join("net-huge-eth0"), vec![b' '; MAX_BYTES as usize + 1]).unwrap();
        std::os::unix::fs::symlink("/dev/zero", folder.path().join("net-link-eth0")).unwrap();
        fs::create_dir(folder.path().join("net-folder-eth0")).unwrap();
        let (told, problems) = read(folder.path()).unwrap();
        assert_eq!(told.len(), 1);
        assert_eq!(problems.len(), 4, "{problems:?}");
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300), cut in 0usize..700) {
            let _ = parse(&bytes);
            let _ = parse(BRIDGE.as_bytes().get(..cut).unwrap_or_default());
        }
    }
}
