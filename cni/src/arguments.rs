//! `CNI_ARGS`: what the runtime says about the pod, as `KEY=VALUE` joined by `;`.

use hauberk_api::PodReference;

use crate::error::CniError;
use crate::name;

/// The pod that `CNI_ARGS` names; none if it names no pod. Other keys are for other plugins and are
/// ignored.
pub fn parse(text: &str) -> Result<Option<PodReference>, CniError> {
    let (mut namespace, mut pod, mut uid) = (None, None, None);
    for pair in text.split(';').filter(|pair| !pair.is_empty()) {
        let (key, value) =
            pair.split_once('=').ok_or_else(|| invalid(format!("has a part without a value: {}", shortened(pair))))?;
        match key {
            "K8S_POD_NAMESPACE" => namespace = Some(value),
            "K8S_POD_NAME" => pod = Some(value),
            "K8S_POD_UID" => uid = Some(value),
            _ => {}
        }
    }
    match (namespace, pod) {
        (None, None) => Ok(None),
        (Some(namespace), Some(pod)) => reference(namespace, pod, uid).map(Some),
        _ => Err(invalid("names only one of K8S_POD_NAMESPACE and K8S_POD_NAME: a pod has both".to_string())),
    }
}

fn reference(namespace: &str, pod: &str, uid: Option<&str>) -> Result<PodReference, CniError> {
    if !name::is_namespace(namespace) {
        return Err(invalid(format!("has an invalid K8S_POD_NAMESPACE: {}", shortened(namespace))));
    }
    if !name::is_pod(pod) {
        return Err(invalid(format!("has an invalid K8S_POD_NAME: {}", shortened(pod))));
    }
    let uid = uid.filter(|uid| !uid.is_empty());
    if let Some(uid) = uid.filter(|uid| !name::is_identifier(uid)) {
        return Err(invalid(format!("has an invalid K8S_POD_UID: {}", shortened(uid))));
    }
    Ok(PodReference { namespace: namespace.to_string(), name: pod.to_string(), uid: uid.map(str::to_string) })
}

fn invalid(problem: String) -> CniError {
    CniError::Environment { variable: "CNI_ARGS", problem }
}

/// The part of an untrusted value that goes into an error text.
pub(crate) fn shortened(value: &str) -> String {
    let text: String = value.chars().take(64).collect();
    format!("{text:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_is_found_among_other_keys() {
        let pod = parse("IgnoreUnknown=1;K8S_POD_NAMESPACE=payments;K8S_POD_NAME=api-0;K8S_POD_INFRA_CONTAINER_ID=x;")
            .unwrap();
        let expected = PodReference { namespace: "payments".to_string(), name: "api-0".to_string(), uid: None };
        assert_eq!(pod, Some(expected));
        assert_eq!(parse("").unwrap(), None);
        assert_eq!(parse("FOO=bar").unwrap(), None);
    }

    #[test]
    fn half_a_pod_or_a_strange_one_is_refused() {
        for bad in [
            "K8S_POD_NAME=api",
            "K8S_POD_NAMESPACE=a/b;K8S_POD_NAME=api",
            "K8S_POD_NAMESPACE=a;K8S_POD_NAME=../api",
            "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;K8S_POD_UID=a b",
            "novalue",
        ] {
            assert_eq!(parse(bad).unwrap_err().code(), 4, "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics(text in ".{0,300}") {
            let _ = parse(&text);
        }
    }
}
