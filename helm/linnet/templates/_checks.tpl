{{/* What the schema can't say: values that don't go together, refused in words. */}}
{{- define "linnet.checks" -}}
{{- $v := .Values -}}
{{- $percent := $v.knative.canaryTrafficPercent -}}
{{- if eq $v.mode "Knative" -}}
  {{- if $v.rollout.enabled -}}
    {{- fail "linnet rollout moves spec.canary, which mode Knative has not: set rollout.enabled=false and go by knative.canaryTrafficPercent" -}}
  {{- end -}}
  {{- if $v.canary -}}
    {{- fail "canary belongs to mode Standard: in mode Knative name the new version in release.version and its share in knative.canaryTrafficPercent" -}}
  {{- end -}}
{{- else if not (kindIs "invalid" $percent) -}}
  {{- fail (printf "knative.canaryTrafficPercent=%v belongs to mode Knative, KServe ignores it in mode Standard: set mode=Knative, or release.version with rollout.enabled=true" $percent) -}}
{{- end -}}
{{- if not (or $v.rollout.enabled $v.release.version) -}}
  {{- fail "release.version is empty, and with rollout.enabled=false the chart serves the one that it names: set it" -}}
{{- end -}}
{{- if not (or $v.gateway.address $v.release.version) -}}
  {{- fail "gateway.address and release.version are both empty: helm test would not know whom to ask, set one" -}}
{{- end -}}
{{- if and $v.page.enabled (not $v.gateway.address) -}}
  {{- fail "page.enabled asks the model through the gateway, and gateway.address is empty: set it" -}}
{{- end -}}
{{- if and $v.rollout.enabled $v.canary -}}
  {{- fail (printf "canary.version=%s: with rollout.enabled=true candidates come by release.version; set rollout.enabled=false to move the weight by hand" $v.canary.version) -}}
{{- end -}}
{{- if and $v.rollout.enabled $v.inferenceService.annotations -}}
  {{- fail "inferenceService.annotations: with rollout.enabled=true the chart does not own the InferenceService; annotate it by kubectl, or set rollout.enabled=false" -}}
{{- end -}}
{{- range list "namespace" "kserve_namespace" "service_account" "runtime" "first_replicas" "host" -}}
  {{- if hasKey $v.rollout.settings . -}}
    {{- fail (printf "rollout.settings.%s comes from other values: the namespace of the release, rollout.kserveNamespace, inferenceService.serviceAccount.name, runtime.name, inferenceService.minReplicas, gateway.host" .) -}}
  {{- end -}}
{{- end -}}
{{- if $v.canary -}}
  {{- if eq $v.canary.version $v.release.version -}}
    {{- fail (printf "canary.version=%s is release.version already: name another one, or take canary away" $v.canary.version) -}}
  {{- end -}}
  {{- if gt (int $v.canary.minReplicas) (int $v.inferenceService.minReplicas) -}}
    {{- fail (printf "canary.minReplicas=%v is more than inferenceService.minReplicas=%v, which KServe refuses: raise that first" $v.canary.minReplicas $v.inferenceService.minReplicas) -}}
  {{- end -}}
{{- end -}}
{{- range $version := list $v.release.version (get ($v.canary | default dict) "version") -}}
  {{- $label := printf "isvc.%s-%s-predictor" $v.release.model ($version | default "") -}}
  {{- if gt (len $label) 63 -}}
    {{- fail (printf "release.model and version make KServe's label %s of %d characters, at most 63 are allowed: shorten one" $label (len $label)) -}}
  {{- end -}}
{{- end -}}
{{- end }}

{{/*
With the chart as owner: a change that would lose requests, told from what the cluster shows.
Not seen by `helm template`.
*/}}
{{- define "linnet.moves" -}}
{{- $live := include "linnet.live" . | fromJson -}}
{{- $shown := dig "spec" "predictor" "name" "" $live -}}
{{- $candidate := dig "spec" "canary" list $live | first | default dict -}}
{{- $name := dig "predictor" "name" "" $candidate -}}
{{- $weight := int (get $candidate "trafficPercent") -}}
{{- $version := .Values.release.version -}}
{{- if and $shown (ne $shown $version) -}}
  {{- if ne $name $version -}}
    {{- fail (printf "%s serves and release.version=%s would take its place in one move, which loses requests: give it as canary.version first, at 0, 10, … 100 %%" $shown $version) -}}
  {{- else if ne $weight 100 -}}
    {{- fail (printf "%s has %d %% of the requests; promoting it now loses some: canary.trafficPercent=100 first, and wait for the route" $version $weight) -}}
  {{- end -}}
{{- else if and $name (ne $name (get (.Values.canary | default dict) "version" | default "")) $weight -}}
  {{- fail (printf "%s has %d %% of the requests; removing it now loses some: canary.trafficPercent=0 first, and wait for the route" $name $weight) -}}
{{- end -}}
{{- end }}
