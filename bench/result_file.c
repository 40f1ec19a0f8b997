/* Reads result files; see result_file.h. What is in them is not trusted. */
#include "bench/result_file.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/report.h"

#define FILE_BYTES_MAX (16u << 20)

const char *result_file_text(const cJSON *object, const char *name)
{
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, name));

    return text != NULL ? text : "";
}

double result_file_number(const cJSON *object, const char *name, double otherwise)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);

    return cJSON_IsNumber(item) ? item->valuedouble : otherwise;
}

/* "ftbench WORKLOAD VERSION" */
static bool read_format(const cJSON *result, char workload[32], unsigned *version)
{
    return sscanf(result_file_text(result, "format"), "ftbench %31s %u", workload, version) == 2;
}

cJSON *result_file_json(const char *path)
{
    FILE *file = fopen(path, "re");
    char *text = malloc(FILE_BYTES_MAX);
    size_t bytes = file != NULL && text != NULL ? fread(text, 1, FILE_BYTES_MAX, file) : 0;
    cJSON *json = NULL;

    if (file == NULL || text == NULL)
        report_error("cannot read %s: %s", path, strerror(errno));
    else if (bytes == FILE_BYTES_MAX || (json = cJSON_ParseWithLength(text, bytes)) == NULL)
        report_error("%s is no JSON file, or an incomplete one", path);
    if (file != NULL)
        fclose(file);
    free(text);
    return json;
}

cJSON *result_file_read(const char *path)
{
    cJSON *json = result_file_json(path);
    char workload[32];
    unsigned version = 0;

    if (json != NULL && (!read_format(json, workload, &version) || version != RESULT_VERSION)) {
        if (version != 0)
            report_error("%s is a result of version %u, and this ftbench reads version %u: measure again, or use the "
                         "ftbench that wrote it", path, version, RESULT_VERSION);
        else
            report_error("%s is no result of ftbench: it should begin with \"format\": \"ftbench WORKLOAD %u\", as "
                         "--json writes it", path, RESULT_VERSION);
        cJSON_Delete(json);
        json = NULL;
    }
    return json;
}

const char *result_file_workload(const cJSON *result)
{
    static char workload[32];
    unsigned version;

    return read_format(result, workload, &version) ? workload : "?";
}

const cJSON *result_file_metric(const cJSON *result, const char *name)
{
    const cJSON *metric;

    cJSON_ArrayForEach(metric, cJSON_GetObjectItemCaseSensitive(result, "metrics"))
    {
        if (strcmp(result_file_text(metric, "name"), name) == 0)
            return metric;
    }
    return NULL;
}

bool result_file_values(const cJSON *metric, double values[VALUES_MAX], unsigned *count)
{
    const cJSON *value;

    *count = 0;
    cJSON_ArrayForEach(value, cJSON_GetObjectItemCaseSensitive(metric, "values"))
    {
        if (!cJSON_IsNumber(value) || *count == VALUES_MAX)
            return false;
        values[(*count)++] = value->valuedouble;
    }
    return *count > 0;
}
