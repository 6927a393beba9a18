{{- define "linnet.labels" -}}
app.kubernetes.io/name: linnet
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
linnet/model: {{ .Values.release.model }}
{{- end }}

{{/* What stays the same over upgrades: a Job's pod may not change. */}}
{{- define "linnet.podLabels" -}}
app.kubernetes.io/name: linnet
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "linnet.image" -}}
{{ .root.Values.images.prefix }}/{{ .name }}:{{ .root.Values.images.tag | default .root.Chart.AppVersion }}
{{- end }}

{{- define "linnet.uri" -}}
{{ .Values.release.root | trimSuffix "/" }}/{{ .Values.release.model }}/{{ .version }}
{{- end }}

{{- define "linnet.host" -}}
{{ .Values.gateway.host | default (printf "%s-%s.example.com" .Values.release.model .Release.Namespace) }}
{{- end }}

{{/* The rollout's objects: one set per model. */}}
{{- define "linnet.rollout" -}}
linnet-rollout-{{ .Values.release.model }}
{{- end }}

{{- define "linnet.byRoute" -}}
{{- if eq (get .Values.rollout.settings "traffic" | default "canary") "route" }}yes{{ end -}}
{{- end }}

{{/* Pods of the model, of the champion and the candidate alike. */}}
{{- define "linnet.pods" -}}
{{- if include "linnet.byRoute" . -}}
linnet/model: {{ .Values.release.model }}
{{- else -}}
serving.kserve.io/inferenceservice: {{ .Values.release.model }}
{{- end }}
{{- end }}

{{- define "linnet.pullSecrets" -}}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "linnet.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "linnet.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* The InferenceService as the cluster has it; empty where Helm can't ask, or there is none. */}}
{{- define "linnet.live" -}}
{{- if .Capabilities.APIVersions.Has "serving.kserve.io/v1beta1" -}}
{{ lookup "serving.kserve.io/v1beta1" "InferenceService" .Release.Namespace .Values.release.model | default dict | toJson }}
{{- else -}}
{}
{{- end -}}
{{- end }}

{{/* The version that serves; empty where Helm can't ask, or nothing does. */}}
{{- define "linnet.shown" -}}
{{- if not (include "linnet.byRoute" .) -}}
{{ dig "spec" "predictor" "name" "" (include "linnet.live" . | fromJson) }}
{{- else if .Capabilities.APIVersions.Has "gateway.networking.k8s.io/v1" -}}
{{- $route := lookup "gateway.networking.k8s.io/v1" "HTTPRoute" .Release.Namespace .Values.release.model | default dict -}}
{{- $rule := dig "spec" "rules" list $route | first | default dict -}}
{{- $backend := get $rule "backendRefs" | default list | first | default dict -}}
{{ get $backend "name" | trimPrefix (printf "%s-" .Values.release.model) | trimSuffix "-predictor" }}
{{- end -}}
{{- end }}
