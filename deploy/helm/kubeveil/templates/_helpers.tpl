{{- define "kubeveil.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}
{{- else -}}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "kubeveil.labels" -}}
app.kubernetes.io/name: kubeveil
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{/* What pods of one component are selected by: never changed, since selectors can't be. */}}
{{- define "kubeveil.selector" -}}
app.kubernetes.io/name: kubeveil
app.kubernetes.io/component: {{ . }}
{{- end -}}

{{/* Where the agent serves metrics and probes. */}}
{{- define "kubeveil.metricsAddress" -}}
{{- if and .Values.metrics.podMonitor.enabled (eq .Values.agent.metricsAddress "127.0.0.1:9586") -}}
$(KUBEVEIL_NODE_ADDRESS):9586
{{- else -}}
{{ .Values.agent.metricsAddress }}
{{- end -}}
{{- end -}}

{{/* A probe of the agent: a loopback address has to be named, any other is the pod's own. */}}
{{- define "kubeveil.agentProbe" -}}
{{- $address := include "kubeveil.metricsAddress" .root -}}
httpGet:
  path: {{ .path }}
  port: metrics
  {{- if hasPrefix "127." $address }}
  host: {{ regexReplaceAll ":[0-9]+$" $address "" }}
  {{- else if hasPrefix "[::1]" $address }}
  host: "::1"
  {{- end }}
{{- end -}}

{{/* The token by which a pod is known, bound to the pod, and where the API server is. Not the one that is mounted by itself:
     API servers accept that for a year (--service-account-extend-token-expiration). */}}
{{- define "kubeveil.tokenVolume" -}}
name: token
projected:
  # 0440; YAML 1.2 reads that as something else.
  defaultMode: 288
  sources:
    - serviceAccountToken: {path: token, expirationSeconds: 3600}
    - configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}
    - downwardAPI: {items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]}
{{- end -}}

{{- define "kubeveil.tokenMount" -}}
{name: token, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
{{- end -}}

{{/* What a container of ours that needs no capability runs as. */}}
{{- define "kubeveil.unprivileged" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* Of a pod that is on no certain node, and must reach the API server while pods' traffic does not pass. */}}
{{- define "kubeveil.reachesApiServer" -}}
automountServiceAccountToken: false
hostNetwork: true
dnsPolicy: Default
nodeSelector: {kubernetes.io/os: linux}
affinity:
  nodeAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        preference:
          matchExpressions: [{key: node-role.kubernetes.io/control-plane, operator: Exists}]
tolerations:
  - {key: node-role.kubernetes.io/control-plane, operator: Exists}
  - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoSchedule}
  - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 60}
  - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 60}
  - {key: node.kubernetes.io/network-unavailable, operator: Exists}
  - {key: node.cloudprovider.kubernetes.io/uninitialized, operator: Exists}
# Its group may read the token.
securityContext: {fsGroup: 65532}
{{- end -}}
