package lsm

import (
	"bytes"
	"context"
	_ "embed" // the default profile
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"text/template"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
)

// DefaultProfile is the AppArmor profile of containers that name none. One of this name that is loaded before crid
// starts is left as it is.
const DefaultProfile = "crid-default"

// loadTimeout bounds the compiling and loading of a profile.
const loadTimeout = 30 * time.Second

// localhost stands in front of the names of the node's profiles in the CRI.
const localhost = "localhost/"

// appArmor is the kernel's side.
type appArmor interface {
	Loaded() (list []byte, err error) // as securityfs lists the profiles
	Load(ctx context.Context, name string) error
}

// AppArmor is the name of the profile that a container is to run under; empty = none. asked counts before the
// deprecated text; neither means the default profile. A privileged container is confined only by a profile of the
// node that it names. A profile that is not loaded is Invalid; on a host that does not enforce AppArmor any is, and all
// else means none.
func (m *Modules) AppArmor(ctx context.Context, asked *runtime.SecurityProfile, deprecated string, privileged bool) (string, error) {
	field, given := "apparmor", asked
	if asked == nil {
		field = "apparmor_profile"
		var err error
		if given, err = fromText(deprecated); err != nil {
			return "", fmt.Errorf("linux.security_context.apparmor_profile: %w", err)
		}
	}
	name, err := m.profile(ctx, given, privileged)
	if err != nil {
		return "", fmt.Errorf("linux.security_context.%s: %w", field, err)
	}
	return name, nil
}

// fromText reads the deprecated field; nil = it says nothing.
func fromText(text string) (*runtime.SecurityProfile, error) {
	switch {
	case text == "":
		return nil, nil
	case text == "runtime/default":
		return &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_RuntimeDefault}, nil
	case text == "unconfined":
		return &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Unconfined}, nil
	case strings.HasPrefix(text, localhost):
		return &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: text}, nil
	}
	return nil, fmt.Errorf("%q is none of runtime/default, unconfined and localhost/NAME: %w", text, errdef.Invalid)
}

func (m *Modules) profile(ctx context.Context, asked *runtime.SecurityProfile, privileged bool) (string, error) {
	switch asked.GetProfileType() {
	case runtime.SecurityProfile_Unconfined:
		return "", nil
	case runtime.SecurityProfile_Localhost:
		return m.nodeProfile(asked.GetLocalhostRef())
	case runtime.SecurityProfile_RuntimeDefault:
	default:
		return "", fmt.Errorf("unknown profile_type %v: %w", asked.GetProfileType(), errdef.Invalid)
	}
	if m.armor == nil || privileged {
		return "", nil
	}
	err := m.ensureDefault(ctx)
	switch {
	case err == nil:
		return DefaultProfile, nil
	case asked == nil: // Open has warned
		return "", nil
	}
	return "", err
}

// nodeProfile finds a profile that the node's administrator has loaded.
func (m *Modules) nodeProfile(ref string) (string, error) {
	name := strings.TrimPrefix(ref, localhost)
	if name == "" {
		return "", fmt.Errorf("localhost_ref is empty: %w", errdef.Invalid)
	}
	if m.armor == nil {
		return "", fmt.Errorf("profile %q: this host does not enforce AppArmor: %w", name, errdef.Invalid)
	}
	there, err := m.loaded(name)
	if err != nil {
		return "", err
	}
	if !there {
		return "", fmt.Errorf("profile %q is not loaded: load it with apparmor_parser: %w", name, errdef.Invalid)
	}
	return name, nil
}

// ensureDefault loads the default profile unless it is loaded: a restart of the host's AppArmor unloads it.
func (m *Modules) ensureDefault(ctx context.Context) error {
	there, err := m.loaded(DefaultProfile)
	if err != nil || there {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	if err := m.armor.Load(ctx, DefaultProfile); err != nil {
		return fmt.Errorf("load AppArmor profile %s: %w: %w", DefaultProfile, errdef.Unavailable, err)
	}
	return nil
}

func (m *Modules) loaded(name string) (bool, error) {
	list, err := m.armor.Loaded()
	if err != nil {
		return false, fmt.Errorf("list AppArmor profiles: %w: %w", errdef.Unavailable, err)
	}
	return listed(string(list), name), nil
}

// listed looks for a profile in lines like "name (enforce)"; a name may have spaces.
func listed(list, name string) bool {
	for line := range strings.Lines(list) {
		line = strings.TrimSuffix(line, "\n")
		if i := strings.LastIndex(line, " ("); i >= 0 && line[:i] == name {
			return true
		}
	}
	return false
}

// parser is the real kernel, which apparmor_parser gives its profiles to.
type parser struct{}

func (parser) Loaded() ([]byte, error) {
	return os.ReadFile("/sys/kernel/security/apparmor/profiles")
}

func (parser) Load(ctx context.Context, name string) error {
	daemon, err := os.ReadFile("/proc/self/attr/current")
	if err != nil {
		return err
	}
	var text bytes.Buffer
	if err := writeProfile(&text, name, string(daemon)); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "apparmor_parser", "-Kr") // -K: no cache of it on a disk that may be read-only
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.WaitDelay = time.Second
	cmd.Stdin = &text
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run apparmor_parser: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

//go:embed crid-default.profile
var profileText string

// runtimes are the names that Debian's and Ubuntu's profiles of runtimes have.
var runtimes = []string{"crun", "runc"}

// writeProfile writes the default profile under a name, for a crid that runs under daemon, as the kernel tells it.
func writeProfile(to io.Writer, name, daemon string) error {
	text, err := template.New(name).Parse(profileText)
	if err != nil {
		return err
	}
	selves, masters := []string{name}, append([]string{"unconfined"}, runtimes...)
	for _, r := range runtimes {
		selves = append(selves, name+"//&"+r)
	}
	own, _, _ := strings.Cut(strings.TrimSpace(daemon), " (")
	if own != "" && !slices.Contains(masters, own) {
		masters = append(masters, own)
	}
	there := func(file string) bool {
		_, err := os.Stat("/etc/apparmor.d/" + file)
		return err == nil
	}
	return text.Execute(to, struct {
		Name            string
		Masters, Selves []string
		Tunables, Base  bool // the distribution's files are there
	}{name, masters, selves, there("tunables/global"), there("abstractions/base")})
}
