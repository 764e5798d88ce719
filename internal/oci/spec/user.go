package spec

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
)

const (
	maxID     = 1<<31 - 1 // the greatest uid and gid that Kubernetes accepts
	maxGroups = 1 << 16   // of one process: the kernel's limit
)

// Accounts are the contents of a root filesystem's /etc/passwd and /etc/group; nil where there is no file.
type Accounts struct {
	Passwd, Group []byte
}

// ResolveUser finds out who the container's process is: the CRI's user and group or else the image's User.
// Group memberships from the group file count under the policy Merge, not under Strict; the primary group is
// always among the additional ones, so that leaving it at run time gains nothing. What cannot be parsed and a name
// that the files do not have are Invalid, with the field or the image that it comes from.
func ResolveUser(a Accounts, c *runtime.ContainerConfig, imageUser string) (User, error) {
	sc := securityContext(c)
	if err := validateUser(sc); err != nil {
		return User{}, err
	}
	who, group := identity(sc, fmt.Sprintf("image %s: User", imageName(c)), imageUser)
	account, err := findUser(a.Passwd, who.text)
	if err != nil {
		return User{}, fmt.Errorf("%s: %w", who.field, err)
	}
	if group.text != "" {
		account.Gid, err = findGroup(a.Group, group.text)
		if err != nil {
			return User{}, fmt.Errorf("%s: %w", group.field, err)
		}
	}
	groups, err := additional(a, sc, account)
	if err != nil {
		return User{}, fmt.Errorf("%s: %w", who.field, err)
	}
	home := account.Home
	if !strings.HasPrefix(home, "/") {
		home = "/"
	}
	return User{UID: uint32(account.Uid), GID: uint32(account.Gid), Additional: groups, Home: home}, nil
}

// asked is a user or a group as it was asked for: a name, a number, or "" for unspecified.
type asked struct{ field, text string }

// identity answers which user and group count.
func identity(sc *runtime.LinuxContainerSecurityContext, imageField, imageUser string) (who, group asked) {
	const field = "linux.security_context."
	if g := sc.GetRunAsGroup(); g != nil {
		group = asked{field + "run_as_group", strconv.FormatInt(g.GetValue(), 10)}
	}
	switch {
	case sc.GetRunAsUser() != nil:
		return asked{field + "run_as_user", strconv.FormatInt(sc.GetRunAsUser().GetValue(), 10)}, group
	case sc.GetRunAsUsername() != "":
		return asked{field + "run_as_username", sc.GetRunAsUsername()}, group
	}
	name, of, _ := strings.Cut(imageUser, ":")
	return asked{imageField, name}, asked{imageField, of}
}

// findUser answers the account of a name or number. A number needs no account: its group is 0 then. Nobody
// at all means root.
func findUser(passwd []byte, who string) (user.User, error) {
	if who == "" {
		who = "0"
	}
	id, numeric, err := parseID(who)
	if err != nil {
		return user.User{}, fmt.Errorf("user %q: %w", who, err)
	}
	var found *user.User
	_, err = user.ParsePasswdFilter(bytes.NewReader(passwd), func(u user.User) bool {
		if found == nil && (numeric && u.Uid == id || !numeric && u.Name == who) {
			found = &u
		}
		return false // a file of nothing but matches is not collected
	})
	switch {
	case err != nil:
		return user.User{}, fmt.Errorf("find user %q in /etc/passwd: %v: %w", who, err, errdef.Invalid)
	case found == nil && numeric:
		return user.User{Uid: id}, nil
	case found == nil:
		return user.User{}, fmt.Errorf("user %q is not in the image's /etc/passwd: %w", who, errdef.Invalid)
	case !validID(found.Uid) || !validID(found.Gid):
		return user.User{}, fmt.Errorf("user %q in /etc/passwd: uid %d, gid %d: out of range: %w", who, found.Uid, found.Gid,
			errdef.Invalid)
	}
	return *found, nil
}

func findGroup(group []byte, name string) (int, error) {
	id, numeric, err := parseID(name)
	if err != nil {
		return 0, fmt.Errorf("group %q: %w", name, err)
	}
	if numeric {
		return id, nil
	}
	var found *user.Group
	_, err = user.ParseGroupFilter(bytes.NewReader(group), func(g user.Group) bool {
		if found == nil && g.Name == name {
			found = &g
		}
		return false
	})
	switch {
	case err != nil:
		return 0, fmt.Errorf("find group %q in /etc/group: %v: %w", name, err, errdef.Invalid)
	case found == nil:
		return 0, fmt.Errorf("group %q is not in the image's /etc/group: %w", name, errdef.Invalid)
	case !validID(found.Gid):
		return 0, fmt.Errorf("group %q in /etc/group: gid %d: out of range: %w", name, found.Gid, errdef.Invalid)
	}
	return found.Gid, nil
}

// additional are the primary group, the CRI's supplemental groups and, under Merge, those of the group file
// that list the user.
func additional(a Accounts, sc *runtime.LinuxContainerSecurityContext, u user.User) ([]uint32, error) {
	gids := []uint32{uint32(u.Gid)}
	for _, g := range sc.GetSupplementalGroups() {
		gids = append(gids, uint32(g))
	}
	if sc.GetSupplementalGroupsPolicy() == runtime.SupplementalGroupsPolicy_Merge && u.Name != "" {
		member, err := groupsOf(a.Group, u.Name)
		if err != nil {
			return nil, err
		}
		gids = append(gids, member...)
	}
	slices.Sort(gids)
	gids = slices.Compact(gids)
	if len(gids) > maxGroups {
		return nil, fmt.Errorf("user %q is in %d groups; Linux allows %d: %w", u.Name, len(gids), maxGroups, errdef.Invalid)
	}
	return gids, nil
}

// groupsOf are the groups that list a user, each once.
func groupsOf(group []byte, name string) ([]uint32, error) {
	set := map[uint32]struct{}{}
	var bad *user.Group
	_, err := user.ParseGroupFilter(bytes.NewReader(group), func(g user.Group) bool {
		switch {
		case !slices.Contains(g.List, name):
		case !validID(g.Gid):
			bad = &g
		case len(set) <= maxGroups:
			set[uint32(g.Gid)] = struct{}{}
		}
		return false
	})
	if err != nil {
		return nil, fmt.Errorf("find groups of user %q in /etc/group: %v: %w", name, err, errdef.Invalid)
	}
	if bad != nil {
		return nil, fmt.Errorf("group %q of user %q: gid %d: out of range: %w", bad.Name, name, bad.Gid, errdef.Invalid)
	}
	return slices.Collect(maps.Keys(set)), nil
}

// ImageUser splits the User of an image's configuration, "user[:group]", into what tells the kubelet who it is: a uid
// where ResolveUser takes it for one, else a name. Of a number out of range only the name is told, which no runAsNonRoot
// lets through.
func ImageUser(imageUser string) (uid *int64, name string) {
	name, _, _ = strings.Cut(imageUser, ":")
	if id, numeric, err := parseID(name); numeric && err == nil {
		id := int64(id)
		return &id, ""
	}
	return nil, name
}

// parseID tells numbers from names. A number out of range is an error, never a name.
func parseID(s string) (id int, numeric bool, err error) {
	digits := strings.TrimPrefix(s, "-")
	if digits == "" || strings.Trim(digits, "0123456789") != "" {
		return 0, false, nil
	}
	id, err = strconv.Atoi(s)
	if err != nil || !validID(id) {
		return 0, true, fmt.Errorf("not within 0 and %d: %w", maxID, errdef.Invalid)
	}
	return id, true, nil
}

func validID(id int) bool { return id >= 0 && id <= maxID }
