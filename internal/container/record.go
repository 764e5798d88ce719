package container

import (
	"encoding/json"
	"fmt"
	"slices"

	"google.golang.org/protobuf/encoding/protojson"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/cgroup"
	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/monitor"
	"github.com/crid/crid/internal/oci/spec"
)

// RecordVersion is the version of Record that this crid writes and reads.
const RecordVersion = 1

// Plan is what is decided before anything is done: with the id, it is all that undoing needs.
type Plan struct {
	Key           Key            `json:"key"`
	Handler       string         `json:"handler"`
	Pause         bool           `json:"pause,omitempty"`
	ImageID       string         `json:"imageId,omitempty"`
	ImageRef      string         `json:"imageRef,omitempty"` // by digest where the image has one
	Volumes       imageVolumes   `json:"imageVolumes,omitempty"`
	Cgroup        string         `json:"cgroup"`
	MonitorCgroup string         `json:"monitorCgroup"`
	LogPath       string         `json:"logPath,omitempty"`
	StopSignal    runtime.Signal `json:"stopSignal"` // effective: the request's, else the image's, else TERM
	Signal        int            `json:"signal"`     // StopSignal as a number of this machine
}

// Record is what survives crid of one container, in a file named by its id.
type Record struct {
	Plan
	Config  json.RawMessage `json:"config"` // the CRI's ContainerConfig as it came, in protojson
	User    spec.User       `json:"user"`
	Monitor monitor.Ref     `json:"monitor"`
	BootID  string          `json:"bootId"` // of the boot in which it was last written with a process

	Resources *Resources    `json:"resources,omitempty"` // in force instead of the config's, after an update
	Undo      cgroup.Limits `json:"undo,omitempty"`      // in force before an update that was under way
	Sent      int           `json:"sent,omitempty"`      // signal that crid was about to send to end the process
	Life
}

// check finds a record that could be read and says too little of a container to do anything with it.
func (r *Record) check() error {
	known := []State{Creating, Created, Running, Exited}
	if !slices.Contains(known, r.State) || r.Handler == "" || r.Key.PodID == "" {
		return fmt.Errorf("its record says nothing of its state (%q), handler (%q) or pod (%q)", r.State, r.Handler, r.Key.PodID)
	}
	return nil
}

// Resources are limits as the CRI has them, kept as protojson. Read-only.
type Resources struct {
	*runtime.LinuxContainerResources
}

// MarshalJSON implements json.Marshaler.
func (r Resources) MarshalJSON() ([]byte, error) { return protojson.Marshal(r.LinuxContainerResources) }

// UnmarshalJSON implements json.Unmarshaler. Fields that this version of the CRI lacks are dropped.
func (r *Resources) UnmarshalJSON(raw []byte) error {
	r.LinuxContainerResources = &runtime.LinuxContainerResources{}
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(raw, r.LinuxContainerResources)
}

// record is the container's record with the status s.
func (c *Container) record(s Status) Record {
	rec := Record{
		Plan:    c.plan,
		Config:  c.raw,
		User:    s.User,
		Monitor: s.ref,
		BootID:  c.m.deps.Host.BootID,
		Undo:    s.undo,
		Sent:    int(s.sent),
		Life:    s.Life,
	}
	if s.Resources != c.config.GetLinux().GetResources() {
		rec.Resources = &Resources{s.Resources}
	}
	return rec
}

func encodeConfig(config *runtime.ContainerConfig) (json.RawMessage, error) {
	raw, err := protojson.Marshal(config)
	if err != nil {
		return nil, fmt.Errorf("encode container config: %w: %w", errdef.Invalid, err)
	}
	return raw, nil
}

func decodeConfig(raw json.RawMessage) (*runtime.ContainerConfig, error) {
	config := &runtime.ContainerConfig{}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(raw, config); err != nil {
		return nil, fmt.Errorf("decode container config: %w", err)
	}
	return config, nil
}
