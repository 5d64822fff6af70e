# Runs a server that never outlives the process that wants it, whatever end that process comes to: its end closes our standard input.
# $1: a folder to remove where that happens, or nothing; $2: the server's log; then the server's command line.
remove=$1
log=$2
shift 2
# A background command's standard input is /dev/null, hence the other number.
exec 3<&0
"$@" </dev/null >>"$log" 2>&1 3<&- &
server=$!
echo "$server"
{
    # Nothing is ever written: it returns at the end of the file.
    read -r _ <&3
    if [ -n "$remove" ]; then : >"$remove/orphaned"; fi
    # Again and again, since a server that has just been started ignores it.
    while kill -s QUIT "$server"; do sleep 1; done
} >/dev/null 2>&1 &
watcher=$!
wait "$server"
status=$?
kill "$watcher"
if [ -n "$remove" ] && [ -e "$remove/orphaned" ]; then rm -rf "$remove"; fi
exit "$status"
