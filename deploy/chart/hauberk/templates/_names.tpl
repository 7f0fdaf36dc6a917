{{- define "hauberk.labels" -}}
app.kubernetes.io/name: hauberk
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "hauberk.selector" -}}
app.kubernetes.io/name: hauberk
app.kubernetes.io/component: {{ . }}
{{- end -}}

{{- define "hauberk.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* The agents' user name at the API server. */}}
{{- define "hauberk.user" -}}
system:serviceaccount:{{ .Release.Namespace }}:hauberk
{{- end -}}

{{/* HauberkConfig's spec: the values, without `auto` where the object does not know it. */}}
{{- define "hauberk.clusterConfig" -}}
{{- $config := deepCopy .Values.config -}}
{{- if eq (toString $config.uplinks) "auto" -}}
{{- $config = omit $config "uplinks" -}}
{{- end -}}
{{- if not $config.nodeRanges -}}
{{- $config = omit $config "nodeRanges" -}}
{{- end -}}
{{ toYaml $config }}
{{- end -}}

{{/* The settings that are only in the agents' file. */}}
{{- define "hauberk.agentConfig" -}}
source:
  kubernetes:
    namespace: {{ .Release.Namespace }}
attach: {{ .Values.agent.attach }}
markShift: {{ .Values.agent.markShift }}
paths:
  state: {{ .Values.agent.statePath }}
  socket: {{ .Values.agent.runPath }}/agent.sock
  {{- if .Values.agent.wireguardTools }}
  uapi: /run/wireguard/{{ .Values.agent.tunnelDevice }}.sock
  {{- else }}
  uapi: {{ .Values.agent.runPath }}/{{ .Values.agent.tunnelDevice }}.sock
  {{- end }}
  {{- if dig "services" "sockets" false .Values.config }}
  cgroup: /host/cgroup
  {{- end }}
metrics: {{ include "hauberk.address" (dict "address" .Values.metrics.address "port" .Values.metrics.port) | quote }}
cni:
  {{- toYaml .Values.cni | nindent 2 }}
{{- end -}}

{{/* The complete file of the agents. */}}
{{- define "hauberk.file" -}}
{{- $tunnel := dict "tunnel" (dict "device" .Values.agent.tunnelDevice) -}}
{{- $file := mustMergeOverwrite (deepCopy .Values.config) $tunnel (include "hauberk.agentConfig" . | fromYaml) -}}
{{ toYaml $file }}
{{- end -}}

{{- define "hauberk.address" -}}
{{- if contains ":" .address -}}[{{ .address }}]{{- else -}}{{ .address }}{{- end -}}:{{ .port }}
{{- end -}}

{{/* The address at which the kubelet, on the agent's network, reaches metrics.address. */}}
{{- define "hauberk.probeHost" -}}
{{- get (dict "0.0.0.0" "127.0.0.1" "::" "::1") . | default . -}}
{{- end -}}

{{/* Checks that the values' schema cannot express. */}}
{{- define "hauberk.check" -}}
{{- if and (eq .Values.cni.install "chained") (ne .Values.config.hostRouting "stack") -}}
{{- fail "cni.install is chained and config.hostRouting is not stack: another CNI plugin routes its pods through the host's stack; set config.hostRouting to stack" -}}
{{- end -}}
{{- if and (dig "services" "outside" false .Values.config) (not (dig "services" "sockets" false .Values.config)) -}}
{{- fail "config.services.outside is true and config.services.sockets is not: agents read services only with the latter; set config.services.sockets to true" -}}
{{- end -}}
{{- if and .Values.metrics.serviceMonitor.enabled (or (hasPrefix "127." .Values.metrics.address) (eq .Values.metrics.address "::1")) -}}
{{- fail (printf "metrics.serviceMonitor.enabled is true and metrics.address is %s, which only the node itself reaches: set metrics.address to 0.0.0.0 or ::" .Values.metrics.address) -}}
{{- end -}}
{{- if eq .Values.agent.statePath .Values.agent.runPath -}}
{{- fail "agent.statePath and agent.runPath are the same: one must survive reboots, the other must not" -}}
{{- end -}}
{{- end -}}

{{/* The host's folders that the agent and the clean-up use. */}}
{{- define "hauberk.mounts" -}}
- {name: config, mountPath: /etc/hauberk, readOnly: true}
- {name: state, mountPath: {{ .Values.agent.statePath }}}
- {name: run, mountPath: {{ .Values.agent.runPath }}}
- {name: bpf, mountPath: /sys/fs/bpf}
- {name: tun, mountPath: /dev/net/tun}
- {name: sysctl, mountPath: /host/proc/sys/net}
{{- if dig "services" "sockets" false .Values.config }}
- {name: cgroup, mountPath: /host/cgroup, readOnly: true}
{{- end }}
{{- if .Values.agent.wireguardTools }}
- {name: wireguard, mountPath: /run/wireguard}
{{- end }}
{{- if ne .Values.cni.install "none" }}
- {name: cni-binaries, mountPath: {{ .Values.cni.binaryDirectory }}}
- {name: cni-configuration, mountPath: {{ .Values.cni.configurationDirectory }}}
{{- end }}
{{- if eq .Values.cni.install "chained" }}
- {name: cni-results, mountPath: {{ .Values.cni.resultsDirectory }}, readOnly: true}
{{- end }}
{{- end -}}

{{- define "hauberk.volumes" -}}
- name: config
  configMap: {name: hauberk}
# The node's private key, and which pod has which addresses.
- name: state
  hostPath: {path: {{ .Values.agent.statePath }}, type: DirectoryOrCreate}
# The agent's socket, on which the CNI plugin of the node calls it.
- name: run
  hostPath: {path: {{ .Values.agent.runPath }}, type: DirectoryOrCreate}
# Programs and maps are pinned here, so that they stay while no agent runs.
- name: bpf
  hostPath: {path: /sys/fs/bpf, type: Directory}
- name: tun
  hostPath: {path: /dev/net/tun, type: CharDevice}
# Forwarding and reverse-path filters. A container's own /proc/sys is read-only.
- name: sysctl
  hostPath: {path: /proc/sys/net, type: Directory}
{{- if dig "services" "sockets" false .Values.config }}
# The programs for services are attached to the node's cgroup of all processes. A container's own
# /sys/fs/cgroup shows only its own.
- name: cgroup
  hostPath: {path: /sys/fs/cgroup, type: Directory}
{{- end }}
{{- if .Values.agent.wireguardTools }}
- name: wireguard
  hostPath: {path: /run/wireguard, type: DirectoryOrCreate}
{{- end }}
{{- if ne .Values.cni.install "none" }}
# Here the agent installs the CNI plugin and its configuration.
- name: cni-binaries
  hostPath: {path: {{ .Values.cni.binaryDirectory }}, type: DirectoryOrCreate}
- name: cni-configuration
  hostPath: {path: {{ .Values.cni.configurationDirectory }}, type: DirectoryOrCreate}
{{- end }}
{{- if eq .Values.cni.install "chained" }}
# Here the agent finds the pods that the other plugin attached.
- name: cni-results
  hostPath: {path: {{ .Values.cni.resultsDirectory }}, type: DirectoryOrCreate}
{{- end }}
{{- end -}}

{{/* Root with all capabilities dropped except these. */}}
{{- define "hauberk.securityContext" -}}
runAsUser: 0
runAsGroup: 0
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
seccompProfile:
  {{- toYaml .Values.securityContext.seccompProfile | nindent 2 }}
capabilities:
  drop: [ALL]
  add:
  - NET_ADMIN # the tunnel device, routes, netfilter rules, and attaching programs to devices
  - NET_RAW # the self-test's packets
  - BPF # loading programs and maps
  - PERFMON # programs that compare pointers, as every access to a packet does
  {{- range .Values.securityContext.addCapabilities }}
  - {{ . }} # securityContext.addCapabilities
  {{- end }}
{{- end -}}
