package sandbox

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/fact"
	"github.com/crid/crid/internal/network"
)

// The versions of the records that this program writes and reads.
const (
	RecordVersion    = 1
	TombstoneVersion = 1
)

// Key is what makes a RunPodSandbox a repetition of another.
type Key struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	UID       string `json:"uid"`
	Attempt   uint32 `json:"attempt"`
}

func (k Key) String() string {
	return fmt.Sprintf("%s/%s (uid %s, attempt %d)", k.Namespace, k.Name, k.UID, k.Attempt)
}

// State is where a pod is in its life. Removal is the absence of the record.
type State string

// The states, in the only order in which they follow each other; creating may become notready at once.
const (
	Creating State = "creating"
	Ready    State = "ready"
	NotReady State = "notready"
)

// reasonStopped is why a pod is not ready that a client has stopped.
const reasonStopped = "Stopped"

// moves is the table of transitions. A pod that is not ready may learn more of why, and of what is undone.
var moves = map[State][]State{
	Creating: {Ready, NotReady},
	Ready:    {NotReady},
	NotReady: {NotReady},
}

// Record is everything that crid keeps of a pod: what was asked, and what the undoing needs and the id alone
// cannot give. A stored or published record is never edited.
type Record struct {
	Key          Key              `json:"key"`
	State        State            `json:"state"`
	Reason       string           `json:"reason,omitempty"`  // why not ready: one word in CamelCase
	Message      string           `json:"message,omitempty"` // the same for a human
	Erasing      bool             `json:"erasing,omitempty"` // all of it is to go: Load takes the erasure up again
	CreatedAt    time.Time        `json:"createdAt"`
	BootID       string           `json:"bootId"`
	Handler      string           `json:"handler"`
	Config       CRIConfig        `json:"config"`
	Hostname     string           `json:"hostname"`
	CgroupParent string           `json:"cgroupParent"`
	SELinux      fact.Labels      `json:"selinux,omitzero"`   // its own, given back with the record
	Network      *network.Request `json:"network,omitempty"`  // as Add gets it; nil for host-network pods
	Detached     bool             `json:"detached,omitempty"` // DEL succeeded, or a tombstone has it
	IPs          []string         `json:"ips,omitempty"`
}

// check finds a record that could be read and says too little of a pod to do anything with it.
func (r *Record) check() error {
	if _, ok := moves[r.State]; !ok {
		return fmt.Errorf("its record says nothing of its state (%q)", r.State)
	}
	if r.Config.PodSandboxConfig == nil {
		return errors.New("its record says nothing of its configuration")
	}
	return nil
}

// CRIConfig is a pod's configuration as it came, kept as protojson. Read-only.
type CRIConfig struct{ *runtime.PodSandboxConfig }

// MarshalJSON implements json.Marshaler.
func (c CRIConfig) MarshalJSON() ([]byte, error) {
	return protojson.Marshal(c.PodSandboxConfig)
}

// UnmarshalJSON implements json.Unmarshaler. Fields that this version of the CRI lacks are dropped.
func (c *CRIConfig) UnmarshalJSON(raw []byte) error {
	c.PodSandboxConfig = &runtime.PodSandboxConfig{}
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(raw, c.PodSandboxConfig)
}
