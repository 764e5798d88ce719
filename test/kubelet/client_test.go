package kubelet

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// get asks the kubelet's API and returns the body of its answer.
func (k *kubelet) get(ctx context.Context, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address(path), nil)
	if err != nil {
		return nil, err
	}
	resp, err := k.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s: %s", path, resp.Status, body)
	}
	return body, err
}

// pods are those that the kubelet knows, as it sees them.
func (k *kubelet) pods(ctx context.Context) ([]v1.Pod, error) {
	raw, err := k.get(ctx, "/pods")
	if err != nil {
		return nil, err
	}
	var list v1.PodList
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("read /pods: %w", err)
	}
	return list.Items, nil
}

// apply gives the kubelet a static pod; one of the same name is replaced.
func (k *kubelet) apply(t *testing.T, pod *v1.Pod) {
	t.Helper()
	raw, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	file := k.manifest(pod.Name)
	hidden := filepath.Join(filepath.Dir(file), "."+filepath.Base(file)) // the kubelet skips names with a dot
	if err := os.WriteFile(hidden, raw, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(hidden, file); err != nil {
		t.Fatal(err)
	}
}

func (k *kubelet) manifest(name string) string {
	return filepath.Join(k.dir, "manifests", name+".json")
}

// remove takes a static pod away and waits until nothing of it runs. The kubelet forgets it at once, and takes it down
// behind that.
func (k *kubelet) remove(t *testing.T, name string) {
	t.Helper()
	if err := os.Remove(k.manifest(name)); err != nil {
		t.Fatal(err)
	}
	ready := &runtime.PodSandboxFilter{State: &runtime.PodSandboxStateValue{State: runtime.PodSandboxState_SANDBOX_READY},
		LabelSelector: map[string]string{"io.kubernetes.pod.name": name + "-" + nodeName}}
	k.wait(t, "pod "+name+" to go", func() error {
		list, err := k.Runtime.ListPodSandbox(k.Context(), ready)
		if err != nil || len(list) > 0 {
			return fmt.Errorf("%d are ready, %w", len(list), err)
		}
		return nil
	})
}

// is waits until a pod is as a test expects it, which is nil from want, and returns it.
func (k *kubelet) is(t *testing.T, name, what string, want func(*v1.Pod) error) *v1.Pod {
	t.Helper()
	var found *v1.Pod
	k.wait(t, fmt.Sprintf("pod %s to be %s", name, what), func() error {
		pods, err := k.pods(t.Context())
		if err != nil {
			return err
		}
		for _, pod := range pods {
			if pod.Name != name+"-"+nodeName {
				continue
			}
			if err := want(&pod); err != nil {
				return fmt.Errorf("%w: %s", err, describe(&pod))
			}
			found = &pod
			return nil
		}
		return fmt.Errorf("the kubelet has no pod %s", name)
	})
	return found
}

// describe is a pod's status in a line.
func describe(pod *v1.Pod) string {
	raw, err := json.Marshal(pod.Status)
	if err != nil {
		return err.Error()
	}
	return string(raw)
}

// ready applies a pod and waits until it is ready.
func (k *kubelet) ready(t *testing.T, pod *v1.Pod) *v1.Pod {
	t.Helper()
	k.apply(t, pod)
	return k.is(t, pod.Name, "ready", isReady)
}

func isReady(pod *v1.Pod) error {
	if pod.Status.Phase != v1.PodRunning {
		return fmt.Errorf("phase %s", pod.Status.Phase)
	}
	for _, condition := range pod.Status.Conditions {
		if condition.Type == v1.PodReady && condition.Status == v1.ConditionTrue {
			return nil
		}
	}
	return fmt.Errorf("not ready")
}

// phase wants a pod in a phase.
func phase(want v1.PodPhase) func(*v1.Pod) error {
	return func(pod *v1.Pod) error {
		if pod.Status.Phase != want {
			return fmt.Errorf("phase %s", pod.Status.Phase)
		}
		return nil
	}
}

// status is how a container of a pod stands, an init container too.
func status(t *testing.T, pod *v1.Pod, container string) v1.ContainerStatus {
	t.Helper()
	for _, s := range append(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses...) {
		if s.Name == container {
			return s
		}
	}
	t.Fatalf("pod %s tells nothing of a container %s: %s", pod.Name, container, describe(pod))
	return v1.ContainerStatus{}
}

// logs are what a container has written, as `kubectl logs` gets it; options are of the API's query.
func (k *kubelet) logs(t *testing.T, pod, container string, options ...string) string {
	t.Helper()
	raw, err := k.get(t.Context(), "/containerLogs/default/"+pod+"-"+nodeName+"/"+container+"?"+strings.Join(options, "&"))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// says waits until a container's log contains words.
func (k *kubelet) says(t *testing.T, pod, container, words string) string {
	t.Helper()
	var text string
	k.wait(t, fmt.Sprintf("%q in the log of %s/%s", words, pod, container), func() error {
		raw, err := k.get(t.Context(), "/containerLogs/default/"+pod+"-"+nodeName+"/"+container)
		if text = string(raw); err == nil && !strings.Contains(text, words) {
			err = fmt.Errorf("it is %q", text)
		}
		return err
	})
	return text
}

// call is what kubectl does to a container: it runs a command in it, or joins what runs there when there is none.
type call struct {
	pod, container string
	command        []string
}

// stream makes a call as kubectl does.
func (k *kubelet) stream(ctx context.Context, c call, o remotecommand.StreamOptions) error {
	verb, query := "exec", url.Values{"command": c.command}
	if c.command == nil {
		verb = "attach"
	}
	for name, on := range map[string]bool{"input": o.Stdin != nil, "output": o.Stdout != nil, "error": o.Stderr != nil, "tty": o.Tty} {
		if on {
			query.Set(name, "1")
		}
	}
	u, err := url.Parse(address("/" + verb + "/default/" + c.pod + "-" + nodeName + "/" + c.container + "?" + query.Encode()))
	if err != nil {
		return err
	}
	executor, err := remotecommand.NewSPDYExecutor(clientConfig(), http.MethodPost, u)
	if err != nil {
		return err
	}
	return executor.StreamWithContext(ctx, o)
}

func clientConfig() *rest.Config {
	return &rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
}

// exec runs a command in a container and returns what it wrote.
func (k *kubelet) exec(t *testing.T, pod, container string, command ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out, failed bytes.Buffer
	if err := k.stream(ctx, call{pod, container, command}, remotecommand.StreamOptions{Stdout: &out, Stderr: &failed}); err != nil {
		t.Fatalf("exec %q in %s/%s: %v, stderr %q", command, pod, container, err, failed.String())
	}
	return out.String()
}
