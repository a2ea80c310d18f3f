{% if setup %}

trap 'code=$?; [ "${BASH_SOURCE[1]}" ] || { echo "stacking: failed: $BASH_COMMAND" >&2; exit $code; }' ERR
{% for line in setup %}
{{ line }}
{% endfor %}
trap - ERR
{% endif %}
{% if exports or scratch %}

{% endif %}
{% for variable in exports %}
export {{ variable }}
{% endfor %}
